import type { DecisionDto, MessageDto } from '../../ipc/backend'
import { isHere, placeName, placeWord, reasonClause } from '../../ipc/words'
import { tokensPerSec } from '../../primitives/format'

/** More places than these are told by their first and last. */
const fewPlaces = 3

/** "On studio", or "Here, then studio" for an answer that moved. */
function placesWord(places: string[]): string {
  const [first = 'here', ...rest] = places
  const last = rest.at(-1)
  if (last === undefined) return placeWord(first)
  const later = places.length > fewPlaces ? [last] : rest
  const moves = places.length > fewPlaces ? ` (moved ${rest.length} times)` : ''
  return [placeWord(first), ...later.map((place) => (isHere(place) ? 'here' : placeName(place)))].join(', then ') + moves
}

export type PlaceLine = { here: boolean; place: string; speed: string | null; reason: string }

/** Reasons longer than this are told by the decision card; the line says it in a few words. */
const shortEnough = 56

function short(sentence: string, code: string): string {
  const trimmed = sentence.trim().replace(/\.$/, '')
  if (trimmed === '' || trimmed.length > shortEnough) return reasonClause(code)
  return trimmed.charAt(0).toLowerCase() + trimmed.slice(1)
}

/** An offset counted in Unicode scalar values, as the product counts, in the units JavaScript counts in. */
export function utf16Offset(text: string, scalars: number): number {
  let at = 0
  for (let passed = 0; passed < scalars && at < text.length; passed += 1) at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1
  return at
}

/** "Here · 52 tok/s · reason" for an answer, from its last segment or, before there is one, from the decision. */
export function placeLine(message: MessageDto, decision: DecisionDto | null, liveSpeed: number | null): PlaceLine | null {
  const segment = message.segments.at(-1)
  if (segment) {
    // Of an answer that moved, one speed would say little and take the room of the reason.
    const speed = message.segments.length > 1 ? null : (segment.decodeTokensPerSec ?? liveSpeed)
    return {
      here: isHere(segment.place),
      place: placesWord(message.segments.map(({ place }) => place)),
      speed: speed === null ? null : `${tokensPerSec(speed)} tok/s`,
      reason: short(segment.sentence, segment.reason),
    }
  }
  if (!decision || decision.target === 'refuse') return null
  const here = decision.target === 'here'
  return {
    here,
    place: here ? 'Here' : placeWord(decision.place),
    speed: liveSpeed === null ? null : `${tokensPerSec(liveSpeed)} tok/s`,
    reason: short(decision.sentence, decision.reason),
  }
}
