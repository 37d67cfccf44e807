/**
 * One chat as the window shows it. Pure: `reduce(state, event)` takes what happened and gives the next state; the
 * product's own state lives behind the Backend.
 */

import type { ConversationDto, DecisionDto, ErrorDto, MessageDto, ReplyEventDto, SegmentDto } from '../../ipc/backend'
import { camel, isHere } from '../../ipc/words'

export type Progress = { phase: 'loading' | 'waiting' | 'prefill'; done: number; total: number }

/** A reply that is on its way. */
export type Reply = {
  /** null until the product has accepted the question. */
  messageId: number | null
  /** The question as it was typed; null when the last one is answered again. */
  text: string | null
  progress: Progress | null
  decision: DecisionDto | null
  stopping: boolean
}

export type ChatState = {
  conversationId: number | null
  title: string
  staysLocal: boolean
  messages: MessageDto[]
  reply: Reply | null
  /** What went wrong with a message, by its id. Kept apart: a reloaded message has only its sentence. */
  failures: Record<number, ErrorDto>
  /** What was told while a message was written, by its id: what made room for it here, why it stays where it is. */
  notes: Record<number, string[]>
  /** An error that belongs to no message. */
  notice: ErrorDto | null
  /** Text to put back into the composer: a question that was not accepted. */
  returned: string | null
}

export type ChatEvent =
  | { type: 'opened'; conversation: ConversationDto }
  | { type: 'renamed'; title: string }
  | { type: 'staysLocal'; staysLocal: boolean }
  | { type: 'sent'; text: string | null; atMs: number }
  | { type: 'stopRequested' }
  | { type: 'noticed'; error: ErrorDto | null }
  | { type: 'returnedTaken' }
  | { type: 'reply'; event: ReplyEventDto }

export const emptyChat: ChatState = {
  conversationId: null,
  title: '',
  staysLocal: false,
  messages: [],
  reply: null,
  failures: {},
  notes: {},
  notice: null,
  returned: null,
}

/** Ids of messages the product has not numbered yet. */
const pendingQuestion = -1
const pendingAnswer = -2

function message(id: number, role: 'user' | 'assistant', text: string, atMs: number): MessageDto {
  return {
    id,
    conversationId: -1,
    role,
    text,
    thinking: '',
    state: role === 'user' ? 'done' : 'writing',
    error: null,
    segments: [],
    decision: null,
    createdAtMs: atMs,
  }
}

function change(state: ChatState, id: number, to: (message: MessageDto) => MessageDto): ChatState {
  return { ...state, messages: state.messages.map((each) => (each.id === id ? to(each) : each)) }
}

function withoutPending(messages: MessageDto[]): MessageDto[] {
  return messages.filter(({ id }) => id !== pendingQuestion && id !== pendingAnswer)
}

export function reduce(state: ChatState, event: ChatEvent): ChatState {
  switch (event.type) {
    case 'opened': {
      const { id, title, staysLocal, messages } = event.conversation
      return { ...emptyChat, conversationId: id, title, staysLocal, messages: messages.filter(({ role }) => role === 'user' || role === 'assistant') }
    }
    case 'renamed':
      return { ...state, title: event.title }
    case 'staysLocal':
      return { ...state, staysLocal: event.staysLocal }
    case 'sent': {
      const added = event.text === null ? [] : [message(pendingQuestion, 'user', event.text, event.atMs)]
      return {
        ...state,
        notice: null,
        returned: null,
        messages: [...state.messages, ...added, message(pendingAnswer, 'assistant', '', event.atMs)],
        reply: { messageId: null, text: event.text, progress: null, decision: null, stopping: false },
      }
    }
    case 'stopRequested':
      return state.reply ? { ...state, reply: { ...state.reply, stopping: true } } : state
    case 'noticed':
      return { ...state, notice: event.error }
    case 'returnedTaken':
      return { ...state, returned: null }
    case 'reply':
      return state.reply ? reduceReply(state, state.reply, event.event) : state
  }
}

/** A part of an answer that is still written: its figures come with the whole. */
function partOf({ place, reason, sentence }: DecisionDto): SegmentDto {
  return {
    place,
    placeId: isHere(place) ? 'here' : '',
    model: '',
    reason,
    sentence,
    decodeTokensPerSec: null,
    ttftMs: null,
    completionTokens: null,
    startedAtChar: 0,
    thinkingAtChar: 0,
    continuation: null,
    gapMs: null,
    ended: null,
    decision: null,
  }
}

function reduceReply(state: ChatState, reply: Reply, event: ReplyEventDto): ChatState {
  const writing = reply.messageId ?? pendingAnswer
  switch (event.type) {
    case 'accepted': {
      const { conversationId, userMessageId, messageId } = event
      return {
        ...state,
        conversationId,
        reply: { ...reply, messageId },
        messages: state.messages.map((each) => {
          if (each.id === pendingQuestion) return { ...each, id: userMessageId, conversationId }
          if (each.id === pendingAnswer) return { ...each, id: messageId, conversationId }
          return each
        }),
      }
    }
    case 'routed':
      return { ...change(state, writing, (each) => ({ ...each, decision: event.decision })), reply: { ...reply, decision: event.decision } }
    case 'moved': {
      const { decision, atChar, thinkingAtChar } = event
      // No place can go on: that the answer failed comes next.
      if (decision.target === 'refuse') return state
      const next = { ...partOf(decision), startedAtChar: atChar, thinkingAtChar, decision }
      const moved = change(state, writing, (each) => ({ ...each, segments: [...(each.segments.length === 0 ? [partOf(each.decision ?? decision)] : each.segments), next] }))
      return { ...moved, reply: { ...reply, decision } }
    }
    case 'note': {
      const told = state.notes[writing] ?? []
      if (told.at(-1) === event.sentence) return state
      return { ...state, notes: { ...state.notes, [writing]: [...told, event.sentence] } }
    }
    case 'progress':
      return { ...state, reply: { ...reply, progress: { phase: event.phase, done: event.done, total: event.total } } }
    case 'text':
      return {
        ...change(state, writing, (each) => ({ ...each, text: each.text + event.text })),
        reply: reply.progress ? { ...reply, progress: null } : reply,
      }
    case 'thinking':
      return {
        ...change(state, writing, (each) => ({ ...each, thinking: each.thinking + event.text })),
        reply: reply.progress ? { ...reply, progress: null } : reply,
      }
    case 'finished':
      return { ...change(state, writing, () => event.message), reply: null }
    case 'failed': {
      // A full disk ends nothing: the chat goes on in memory, and the line above the composer says so.
      if (camel(event.error.code) === 'diskFull' && event.message?.state === 'writing') return { ...state, notice: event.error }
      return reduceFailure(state, reply, event.error, event.message)
    }
  }
}

function reduceFailure(state: ChatState, reply: Reply, error: ErrorDto, last: MessageDto | null): ChatState {
  if (last) {
    const next = change(state, reply.messageId ?? pendingAnswer, () => last)
    return { ...next, reply: null, failures: { ...state.failures, [last.id]: error } }
  }
  if (reply.messageId !== null) {
    // What was received stays, whatever happened to the rest.
    const { messageId } = reply
    const next = change(state, messageId, (each) => ({ ...each, state: each.text ? 'interrupted' : 'failed', error: error.sentence }))
    return { ...next, reply: null, failures: { ...state.failures, [messageId]: error } }
  }
  // Never accepted: the question goes back to where it was typed.
  return { ...state, messages: withoutPending(state.messages), reply: null, notice: error, returned: reply.text }
}

/** Whether a later answer to the same question has taken this one's place. */
export function isSuperseded(messages: MessageDto[], index: number): boolean {
  const own = messages[index]
  const next = messages[index + 1]
  return own?.role === 'assistant' && next?.role === 'assistant' && next.state !== 'failed' && (next.text !== '' || own.state === 'done')
}

/** The last thing the person asked, for ↑ in an empty composer. */
export function lastQuestion(state: ChatState): string | null {
  return state.messages.findLast(({ role }) => role === 'user')?.text ?? null
}

/** A guess at the tokens this chat takes up, draft included: about 3.6 characters each. */
export function roughTokens(state: ChatState, draft: string): number {
  const letters = state.messages.reduce((sum, each) => sum + each.text.length, draft.length)
  return Math.round(letters / 3.6)
}
