import { expect, it } from 'vitest'
import type { VerdictDto } from '../../ipc/backend'
import { hoverFit, reduce, type DropEvent, type DropState } from './reduce'

const refused: VerdictDto = { kind: 'refused', title: 'Not a model file', sentence: 's', hint: null, path: '/a' }
const fits = (neededBytes: number, path: string) => ({ kind: 'model', model: { path, fit: { neededBytes } }, fits: [] }) as unknown as VerdictDto
const play = (...events: DropEvent[]) => events.reduce<DropState>(reduce, { step: 'idle' })

it('a file that leaves changes nothing', () => {
  expect(play({ type: 'entered', paths: ['/a'] }, { type: 'left' })).toEqual({ step: 'idle' })
})

it('a file read while it hovered is judged at once when dropped', () => {
  const state = play({ type: 'entered', paths: ['/a'] }, { type: 'inspected', paths: ['/a'], verdicts: [refused] }, { type: 'dropped', paths: ['/a'] })
  expect(state).toMatchObject({ step: 'judged', verdicts: [refused], how: 'reference' })
})

it('a file dropped before it was read is judged when it has been', () => {
  const waiting = play({ type: 'entered', paths: ['/a'] }, { type: 'dropped', paths: ['/a'] })
  expect(waiting.step).toBe('inspecting')
  expect(reduce(waiting, { type: 'inspected', paths: ['/other'], verdicts: [refused] })).toBe(waiting)
  expect(reduce(waiting, { type: 'inspected', paths: ['/a'], verdicts: [refused] }).step).toBe('judged')
})

it('a file that cannot be looked at is refused with the reason', () => {
  const state = play({ type: 'dropped', paths: ['/a'] }, { type: 'inspectFailed', paths: ['/a'], error: { code: 'internal', sentence: 'No permission.', hint: null } })
  expect(state).toMatchObject({ step: 'judged', verdicts: [{ kind: 'refused', sentence: 'No permission.' }] })
})

it('one added file ends it; of several the rest stays', () => {
  const one = play({ type: 'dropped', paths: ['/a'] }, { type: 'inspected', paths: ['/a'], verdicts: [fits(1, '/a')] }, { type: 'adding', path: '/a' }, { type: 'added', path: '/a' })
  expect(one.step).toBe('idle')
  const two = play({ type: 'dropped', paths: ['/a', '/b'] }, { type: 'inspected', paths: ['/a', '/b'], verdicts: [fits(1, '/a'), refused] }, { type: 'adding', path: '/a' }, { type: 'added', path: '/a' })
  expect(two).toMatchObject({ step: 'judged', added: ['/a'], adding: null })
})

it('shows the largest footprint of several files', () => {
  const state = play({ type: 'entered', paths: ['/a', '/b'] }, { type: 'inspected', paths: ['/a', '/b'], verdicts: [fits(1, '/a'), fits(5, '/b')] })
  expect(hoverFit(state)?.neededBytes).toBe(5)
})
