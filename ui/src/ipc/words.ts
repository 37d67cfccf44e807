/** The transport's enumerations in words, each with the status it has. One place, so one thing has one name. */

import type { ThermalState, Verdict, VitalsDto } from './backend'

export type Status = 'calm' | 'near' | 'critical' | 'offloaded' | 'unknown'

export const verdictWords: Record<Verdict, { status: Status; word: string }> = {
  runsWell: { status: 'calm', word: 'Runs well' },
  tight: { status: 'near', word: 'Tight' },
  tooBig: { status: 'critical', word: 'Too big here' },
  unknown: { status: 'unknown', word: 'Fit not known' },
}

export const thermalWords: Record<ThermalState, { status: Status; word: string }> = {
  nominal: { status: 'calm', word: 'Nominal' },
  fair: { status: 'calm', word: 'Fair' },
  serious: { status: 'near', word: 'Serious' },
  critical: { status: 'critical', word: 'Critical' },
}

export const pressureWords: Record<NonNullable<VitalsDto['pressure']>, { status: Status; word: string }> = {
  normal: { status: 'calm', word: 'Normal' },
  warning: { status: 'near', word: 'Warning' },
  critical: { status: 'critical', word: 'Critical' },
}

const reasonWords: Record<string, string> = {
  chosen: 'chosen by you',
  onlyHere: 'local only',
  staysLocal: 'this chat stays here',
  fits: 'fits here',
  smallerContext: 'smaller context',
  noNode: 'no node',
  memory: 'memory',
  swap: 'swap',
  pressure: 'memory pressure',
  thermal: 'heat',
  tooSlow: 'too slow here',
  noModel: 'no model here',
  tooLong: 'too long for this model',
  nodeUnreachable: 'node not reachable',
}

/** `snake_case`, `kebab-case` or `PascalCase` as `camelCase`: codes are compared in one spelling. */
export function camel(code: string): string {
  const joined = code.replace(/[-_]+(\w)/g, (_, letter: string) => letter.toUpperCase())
  return joined.charAt(0).toLowerCase() + joined.slice(1)
}

/** A routing reason in a few words, or the code with spaces where it is new. */
export function reasonWord(code: string): string {
  return reasonWords[camel(code)] ?? code.replace(/[-_]+/g, ' ')
}

/** A node's name from the place as the product says it: "studio" from "On studio". */
export function placeName(place: string): string {
  return place.trim().replace(/^on /i, '')
}

export function isHere(place: string): boolean {
  return place.trim().toLowerCase() === 'here'
}

/** "Here" or "On studio". */
export function placeWord(place: string): string {
  return isHere(place) ? 'Here' : `On ${placeName(place)}`
}

/** A clause as a sentence: with a capital and a final dot. */
export function asSentence(clause: string): string {
  const trimmed = clause.trim()
  if (trimmed === '') return ''
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?…。]$/.test(trimmed) ? '' : '.')
}

const reasonClauses: Record<string, string> = {
  chosen: 'as you chose',
  fits: 'fits here',
  smallerContext: 'with a smaller context',
  noNode: 'no node can answer',
  memory: 'memory is short here',
  swap: 'this machine is swapping',
  pressure: 'memory is under pressure here',
  thermal: 'too hot here',
}

/** A routing reason as the end of "On studio · 41 tok/s · …". */
export function reasonClause(code: string): string {
  return reasonClauses[camel(code)] ?? reasonWord(code)
}
