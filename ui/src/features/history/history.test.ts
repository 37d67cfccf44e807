import { expect, it } from 'vitest'
import type { DecisionEntryDto, DecisionKind } from '../../ipc/backend'
import { byDay, dayLabel, noFilter, placesIn } from './history'

const now = new Date(2026, 5, 18, 15, 4).getTime()
const hour = 3_600_000

function entry(id: number, kind: DecisionKind, place: string, hoursAgo: number): DecisionEntryDto {
  const decision = { target: place === '' ? 'refuse' : place === 'Here' ? 'here' : 'node', place, reason: 'fits', sentence: '', counterfactual: null, readings: [], alternatives: [] } as DecisionEntryDto['decision']
  return { id, atMs: now - hoursAgo * hour, kind, askedBy: 'window', conversationId: null, messageId: null, model: 'm', placeId: '', decision }
}

const entries = [entry(5, 'move', 'On studio', 0), entry(4, 'start', 'Here', 1), entry(3, 'refused', '', 20), entry(2, 'start', 'On mini', 22), entry(1, 'start', 'Here', 80)]
const shown = (filter: Partial<typeof noFilter>) => byDay(entries, { ...noFilter, ...filter }, now).map(({ label, entries: of }) => [label, of.map(({ id }) => id)])

it('is told by day, newest first', () => {
  expect(shown({})).toEqual([['Today', [5, 4]], ['Yesterday', [3, 2]], ['Mon 15 June', [1]]])
})

it('is narrowed to a kind and a place', () => {
  expect(shown({ kind: 'start' })).toEqual([['Today', [4]], ['Yesterday', [2]], ['Mon 15 June', [1]]])
  expect(shown({ kind: 'start', place: 'here' })).toEqual([['Today', [4]], ['Mon 15 June', [1]]])
  expect(shown({ place: 'studio' })).toEqual([['Today', [5]]])
  expect(placesIn(entries)).toEqual(['here', 'mini', 'studio'])
})

it('names the year where it is another one', () => {
  expect(dayLabel(new Date(2025, 0, 2).getTime(), now)).toMatch(/2 January 2025/)
})
