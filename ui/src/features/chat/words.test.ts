import { expect, it } from 'vitest'
import type { MessageDto } from '../../ipc/backend'
import { failureActions } from './failure'
import { placeLine, utf16Offset } from './place'
import { progressWords } from './progressWords'
import { finishedSentences } from './sentences'

it('says what happens before the first token', () => {
  expect(progressWords({ phase: 'loading', done: 3.1e9, total: 5.03e9 }, 'Qwen3 8B', null)).toBe('Loading Qwen3 8B, 3.1 of 5.0 GB')
  expect(progressWords({ phase: 'loading', done: 200e6, total: 491e6 }, 'Qwen2.5', null)).toBe('Loading Qwen2.5, 200 of 491 MB')
  expect(progressWords({ phase: 'prefill', done: 2480, total: 6200 }, null, null)).toBe('Reading 6,200 tokens, 40 %')
  expect(progressWords({ phase: 'waiting', done: 0, total: 2 }, null, 'studio')).toBe('Waiting for studio · 2 before you')
  expect(progressWords(null, null, 'studio')).toBe('Asking studio')
})

it('speaks whole sentences, each once', () => {
  const first = finishedSentences('One is here. Two is', 0)
  expect(first).toEqual({ speak: 'One is here.', upTo: 12 })
  expect(finishedSentences('One is here. Two is', first.upTo).speak).toBe('')
  expect(finishedSentences('One is here. Two is **3.5**. Th', first.upTo).speak).toBe('Two is 3.5.')
  expect(finishedSentences('Runs main.', 0).speak).toBe('')
})

it('says where an answer was made, how fast, and why', () => {
  const segment = { place: 'On studio', model: 'm', reason: 'memory', sentence: 'Here would swap in about 40 s.', decodeTokensPerSec: 41.2, ttftMs: 1, completionTokens: 1, startedAtChar: 0 }
  const message = { segments: [segment] } as unknown as MessageDto
  expect(placeLine(message, null, null)).toEqual({ here: false, place: 'On studio', speed: '41 tok/s', reason: 'here would swap in about 40 s' })
  const long = { segments: [{ ...segment, place: 'here', reason: 'smaller_context', sentence: 'x'.repeat(90) }] } as unknown as MessageDto
  const part = (place: string) => ({ ...segment, place })
  const moved = (...places: string[]) => placeLine({ segments: places.map(part) } as unknown as MessageDto, null, null)?.place
  expect(moved('Here', 'On studio')).toBe('Here, then studio')
  expect(moved('On studio', 'Here', 'On mini')).toBe('On studio, then here, then mini')
  expect(moved('Here', 'On studio', 'Here', 'On mini')).toBe('Here, then mini (moved 3 times)')
  const writing = { segments: [{ ...segment, decodeTokensPerSec: null }] } as unknown as MessageDto
  expect(placeLine(writing, null, 30)?.speed).toBe('30 tok/s')
  expect(placeLine(long, null, null)).toMatchObject({ here: true, place: 'Here', reason: 'with a smaller context' })
})

it('counts seams as the product counts letters', () => {
  expect(utf16Offset('a🙂b', 2)).toBe(3)
  expect(utf16Offset('ab', 9)).toBe(2)
})

it('offers what helps against each failure', () => {
  expect(failureActions('cutOff', true)).toMatchObject({ here: true, again: 'Try again' })
  expect(failureActions('engine_failed', false)).toEqual({ here: false, again: 'Start again', details: true })
  expect(failureActions(null, true).here).toBe(true)
})
