import { expect, it } from 'vitest'
import type { DecisionDto, DecisionEntryDto, MessageDto, SegmentDto } from '../../ipc/backend'
import { cardOfEntry, cardOfPart } from './card'

const here: DecisionDto = { target: 'here', place: 'Here', reason: 'fits', sentence: 'fits with 2.4 GB to spare', counterfactual: null, readings: [], alternatives: [] }
const moved: DecisionDto = { ...here, target: 'node', place: 'On studio', reason: 'swap', sentence: 'here swaps in 40.0 MB/s' }
const first: SegmentDto = { place: 'Here', placeId: 'here', model: 'm', reason: 'fits', sentence: 'fits', decodeTokensPerSec: null, ttftMs: 240, completionTokens: 212, startedAtChar: 0, thinkingAtChar: 0, continuation: null, gapMs: null, ended: 'handed over', decision: here }
const second: SegmentDto = { ...first, place: 'On studio', placeId: 'studio', reason: 'swap', sentence: 'here swaps in 40.0 MB/s', ttftMs: null, completionTokens: 88, decodeTokensPerSec: 41, continuation: 'tokens', gapMs: 84, ended: 'finished', decision: moved }
const message = (segments: SegmentDto[]) => ({ segments, decision: here }) as MessageDto

it('tells why an answer moved and how it was handed over', () => {
  const card = cardOfPart(message([first, second]), 1)
  expect(card.title).toBe('Moved to studio after 212 tokens: swap')
  expect(card.decision).toBe(moved)
  expect(card.handover).toEqual([
    { name: 'Handed over', value: 'by its tokens: the same as if it had not moved' },
    { name: 'Pause', value: '84 ms between two words' },
  ])
  expect(card.facts).toEqual(['m', '88 tokens', '41 tok/s'])
})

it('tells that the place before failed', () => {
  const back = { ...first, continuation: 'text', gapMs: 1240, decision: { ...here, reason: 'failed' }, reason: 'failed' }
  const card = cardOfPart(message([{ ...second, continuation: null, completionTokens: null, ended: 'it closed the connection' }, back]), 1)
  expect(card.title).toBe('Moved back here: studio failed')
  expect(card.handover.map(({ name, value }) => `${name}: ${value}`)).toEqual([
    'studio failed: it closed the connection',
    'Handed over: by its text, which was read again there',
    'Pause: 1.2 s between two words',
  ])
})

it('tells of an answer that never moved, or has not begun', () => {
  expect(cardOfPart(message([{ ...first, decision: null }]), 0)).toMatchObject({ title: 'Answered here: fits here', decision: here, handover: [] })
  expect(cardOfPart(message([]), 0).title).toBe('Answered here: fits here')
  expect(cardOfPart({ segments: [], decision: { ...here, target: 'refuse' } } as unknown as MessageDto, 0).title).toBe('Not answered')
})

it('tells of an entry of the history', () => {
  const entry: DecisionEntryDto = { id: 1, atMs: 0, kind: 'move', askedBy: 'gateway', conversationId: null, messageId: null, model: 'm', placeId: 'studio', decision: moved }
  expect(cardOfEntry(entry, null, '15:04')).toMatchObject({ title: 'Moved to studio: swap', sentence: 'Here swaps in 40.0 MB/s.', facts: ['15:04', 'asked by a program', 'm'] })
  expect(cardOfEntry({ ...entry, kind: 'lost' }, null, '15:04').title).toBe('studio failed')
  expect(cardOfEntry({ ...entry, kind: 'refused' }, 'Tides', '15:04')).toMatchObject({ title: 'Not answered', facts: ['15:04', 'in “Tides”', 'm'] })
})
