import { expect, it } from 'vitest'
import { place } from './placement'

const view = { width: 400, height: 620 }
const anchor = (top: number) => ({ left: 16, right: 60, top, bottom: top + 20 })

it('stands beside its anchor, on the side with more room', () => {
  expect(place(anchor(100), { width: 300, height: 200 }, view, 'start')).toEqual({ left: 16, top: 126, maxHeight: 604 })
  expect(place(anchor(500), { width: 300, height: 200 }, view, 'start')).toMatchObject({ top: 294 })
})

it('reaches over the anchor where neither side has the room, and never out of the window', () => {
  expect(place(anchor(200), { width: 300, height: 450 }, view, 'start')).toMatchObject({ top: 162 })
  expect(place(anchor(400), { width: 300, height: 450 }, view, 'start')).toMatchObject({ top: 8 })
  expect(place(anchor(400), { width: 300, height: 900 }, view, 'end')).toEqual({ left: 8, top: 8, maxHeight: 604 })
})
