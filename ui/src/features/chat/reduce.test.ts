import { describe, expect, it } from 'vitest'
import type { DecisionDto, MessageDto, ReplyEventDto } from '../../ipc/backend'
import { emptyChat, isSuperseded, lastQuestion, reduce, type ChatState } from './reduce'

const decision: DecisionDto = { target: 'node', place: 'studio', reason: 'memory', sentence: 'Memory.', counterfactual: null, readings: [], alternatives: [] }

function message(id: number, role: MessageDto['role'], text: string, state: MessageDto['state'] = 'done'): MessageDto {
  return { id, conversationId: 7, role, text, thinking: '', state, error: null, segments: [], decision: null, createdAtMs: 0 }
}

const accepted: ReplyEventDto = { type: 'accepted', conversationId: 7, userMessageId: 1, messageId: 2 }

function play(events: ReplyEventDto[], from: ChatState = reduce(emptyChat, { type: 'sent', text: 'Why?', atMs: 0 })): ChatState {
  return events.reduce((state, event) => reduce(state, { type: 'reply', event }), from)
}

describe('a reply', () => {
  it('is numbered when it is accepted, and grows', () => {
    const state = play([accepted, { type: 'routed', decision }, { type: 'progress', phase: 'prefill', done: 1, total: 2 }, { type: 'text', text: 'Be' }, { type: 'text', text: 'cause' }])
    expect(state.conversationId).toBe(7)
    expect(state.messages.map(({ id, text }) => [id, text])).toEqual([[1, 'Why?'], [2, 'Because']])
    expect(state.reply?.progress).toBeNull()
    expect(state.reply?.decision).toBe(decision)
  })

  it('that finishes is what the product says it is', () => {
    const last = message(2, 'assistant', 'Because.')
    const state = play([accepted, { type: 'text', text: 'Because' }, { type: 'finished', message: last }])
    expect(state.reply).toBeNull()
    expect(state.messages.at(-1)).toBe(last)
  })

  it('cut off in the middle keeps what was received, and says why', () => {
    const error = { code: 'cutOff', sentence: 'studio went away.', hint: null }
    const state = play([accepted, { type: 'text', text: 'Half an ans' }, { type: 'failed', error, message: null }])
    expect(state.messages.at(-1)).toMatchObject({ text: 'Half an ans', state: 'interrupted' })
    expect(state.failures[2]).toBe(error)
    expect(state.reply).toBeNull()
  })

  it('that was never accepted gives the question back', () => {
    const error = { code: 'noModel', sentence: 'There is no model.', hint: null }
    const state = play([{ type: 'failed', error, message: null }])
    expect(state.messages).toEqual([])
    expect(state.returned).toBe('Why?')
    expect(state.notice).toBe(error)
  })

  it('goes on while the disk is full', () => {
    const error = { code: 'diskFull', sentence: 'The disk is full.', hint: null }
    const state = play([accepted, { type: 'text', text: 'a' }, { type: 'failed', error, message: message(2, 'assistant', 'a', 'writing') }, { type: 'text', text: 'b' }])
    expect(state.messages.at(-1)?.text).toBe('ab')
    expect(state.notice).toBe(error)
    expect(state.reply).not.toBeNull()
  })

  it('that has ended takes nothing more', () => {
    const ended = play([accepted, { type: 'finished', message: message(2, 'assistant', 'Done.') }])
    expect(play([{ type: 'text', text: ' More' }], ended)).toBe(ended)
  })
})

it('an answer that moves has a seam where it did, and says where it is now', () => {
  const here: DecisionDto = { ...decision, target: 'here', place: 'Here' }
  const state = play([accepted, { type: 'routed', decision: here }, { type: 'text', text: 'Half' }, { type: 'moved', decision, atChar: 4, thinkingAtChar: 0 }, { type: 'text', text: ' an answer' }])
  expect(state.messages.at(-1)?.segments.map(({ place, startedAtChar }) => [place, startedAtChar])).toEqual([['Here', 0], ['studio', 4]])
  expect(state.messages.at(-1)?.decision).toBe(here)
  expect(state.reply?.decision).toBe(decision)
  const refused = play([{ type: 'moved', decision: { ...decision, target: 'refuse' }, atChar: 14, thinkingAtChar: 0 }], state)
  expect(refused).toBe(state)
})

it('what is told while an answer is written stays with it, each once in a row', () => {
  const note = (sentence: string): ReplyEventDto => ({ type: 'note', sentence })
  const state = play([accepted, note('Room was made.'), note('Room was made.'), note('It stays.'), { type: 'finished', message: message(2, 'assistant', 'Done.') }])
  expect(state.notes).toEqual({ 2: ['Room was made.', 'It stays.'] })
})

it('answering again adds no question and puts the earlier answer aside', () => {
  const opened = reduce(emptyChat, { type: 'opened', conversation: { id: 7, title: 'T', staysLocal: false, draft: '', messages: [message(1, 'user', 'Why?'), message(2, 'assistant', 'No.')] } })
  const again = play([{ ...accepted, messageId: 3 }, { type: 'text', text: 'Yes' }], reduce(opened, { type: 'sent', text: null, atMs: 0 }))
  expect(again.messages.map(({ id }) => id)).toEqual([1, 2, 3])
  expect(isSuperseded(again.messages, 1)).toBe(true)
  expect(isSuperseded(again.messages, 2)).toBe(false)
  expect(lastQuestion(again)).toBe('Why?')
})

it('a received part stays in view until a second try has text', () => {
  const messages = [message(1, 'user', 'Why?'), message(2, 'assistant', 'Half', 'interrupted'), message(3, 'assistant', '', 'writing')]
  expect(isSuperseded(messages, 1)).toBe(false)
})
