import { expect, it } from 'vitest'
import { group } from './groups'

const at = (...parts: [number, number, number, number]) => new Date(...parts).getTime()
const now = at(2026, 5, 18, 15)
const chat = (id: number, title: string, updatedAtMs: number) => ({ id, title, updatedAtMs, staysLocal: false })
const chats = [chat(1, 'Old', at(2026, 4, 1, 9)), chat(2, 'Late', at(2026, 5, 17, 23)), chat(3, 'Early', at(2026, 5, 18, 0)), chat(4, 'Monday', at(2026, 5, 15, 9))]

it('groups by day, newest first', () => {
  expect(group(chats, now).map(({ label, conversations }) => [label, conversations.map(({ id }) => id)])).toEqual([
    ['Today', [3]],
    ['Yesterday', [2]],
    ['This week', [4]],
    ['Earlier', [1]],
  ])
})

it('narrows to titles that contain the search', () => {
  expect(group(chats, now, ' LATE ').flatMap(({ conversations }) => conversations.map(({ id }) => id))).toEqual([2])
})
