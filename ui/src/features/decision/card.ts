/** What the card tells of a decision: of one part of an answer, or of an entry of the history. Pure. */

import type { DecisionDto, DecisionEntryDto, MessageDto } from '../../ipc/backend'
import { asSentence, askedByWords, isHere, kindWords, moveReason, placeName, reasonWord } from '../../ipc/words'
import { milliseconds, tokensPerSec, whole } from '../../primitives/format'

export type Card = {
  title: string
  sentence: string
  decision: DecisionDto | null
  /** How an answer was handed over, each with its name. */
  handover: { name: string; value: string }[]
  /** Figures and circumstances, in one line. */
  facts: string[]
}

const continuations: Record<string, string> = {
  tokens: 'by its tokens: the same as if it had not moved',
  text: 'by its text, which was read again there',
  prefix: 'as the beginning of a message, which was read again there',
}

/** Ends that are no news: the answer was whole, or its part was handed over in time. */
const usualEnds = ['finished', 'handed over']

const known = (facts: (string | null)[]): string[] => facts.filter((fact) => fact !== null && fact !== '') as string[]

/** A figure in words, where it is known. */
const figure = (value: number | null | undefined, say: (value: number) => string) => (value === null || value === undefined ? null : say(value))

/** The `part`-th place that wrote the answer, and why there. */
export function cardOfPart(message: MessageDto, part: number): Card {
  const segment = message.segments[part]
  const decision = segment?.decision ?? (part === 0 || message.segments.length === 0 ? message.decision : null)
  const place = segment?.place ?? decision?.place ?? 'here'
  const before = message.segments[part - 1]
  const code = segment?.reason ?? decision?.reason ?? ''
  const reason = before ? moveReason(code, before.place) : reasonWord(code)
  let title = `${isHere(place) ? 'Answered here' : `Answered on ${placeName(place)}`}: ${reason}`
  if (decision?.target === 'refuse') title = 'Not answered'
  else if (before) {
    const written = message.segments.slice(0, part).map(({ completionTokens }) => completionTokens)
    const tokens = written.every((count) => count !== null) ? written.reduce((sum, count) => sum + count, 0) : null
    title = `Moved ${isHere(place) ? 'back here' : `to ${placeName(place)}`}${tokens === null ? '' : ` after ${whole(tokens)} tokens`}: ${reason}`
  } else if (message.segments.length > 1) title = `Began ${isHere(place) ? 'here' : `on ${placeName(place)}`}: ${reason}`
  const handover: Card['handover'] = []
  if (before && segment) {
    if (before.ended !== null && !usualEnds.includes(before.ended)) handover.push({ name: `${placeName(before.place)} failed`, value: before.ended })
    if (segment.continuation !== null) handover.push({ name: 'Handed over', value: continuations[segment.continuation] ?? segment.continuation })
    if (segment.gapMs !== null) handover.push({ name: 'Pause', value: `${milliseconds(segment.gapMs)} between two words` })
  }
  return {
    title,
    sentence: asSentence(segment?.sentence ?? decision?.sentence ?? ''),
    decision,
    handover,
    facts: known([
      segment?.model ?? null,
      figure(segment?.ttftMs, (ms) => `first token after ${milliseconds(ms)}`),
      figure(segment?.completionTokens, (tokens) => `${whole(tokens)} tokens`),
      figure(segment?.decodeTokensPerSec, (speed) => `${tokensPerSec(speed)} tok/s`),
    ]),
  }
}

function titleOf({ kind, decision }: DecisionEntryDto): string {
  const name = placeName(decision.place)
  const here = isHere(decision.place)
  const reason = reasonWord(decision.reason)
  switch (kind) {
    case 'start':
      return `Began ${here ? 'here' : `on ${name}`}: ${reason}`
    case 'move':
      return `Moved ${here ? 'here' : `to ${name}`}: ${reason}`
    case 'stay':
      return `Stayed where it was: ${reason}`
    case 'lost':
      return here ? 'It failed here' : `${name} failed`
    case 'relief':
    case 'refused':
      return kindWords[kind]
  }
}

/** A decision of the history, made `at`. `chat` is the title of the chat it was for, where it is still there. */
export function cardOfEntry(entry: DecisionEntryDto, chat: string | null, at: string): Card {
  const { decision, askedBy, model } = entry
  return {
    title: titleOf(entry),
    sentence: asSentence(decision.sentence),
    decision,
    handover: [],
    facts: known([at, chat === null ? `asked ${askedByWords[askedBy]}` : `in “${chat}”`, model]),
  }
}
