/** The transport's enumerations in words, each with the status it has. One place, so one thing has one name. */

import type { AskedBy, DecisionKind, ThermalState, Trust, Verdict, VitalsDto } from './backend'

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
  modelStays: 'this model stays here',
  trust: 'trust',
  fits: 'fits here',
  smallerContext: 'smaller context',
  cached: 'read there already',
  noNode: 'no node',
  memory: 'memory',
  memorySoon: 'memory runs short',
  swap: 'swap',
  pressure: 'memory pressure',
  thermal: 'heat',
  tooSlow: 'too slow here',
  noModel: 'no model here',
  tooLong: 'too long for this model',
  failed: 'the other place failed',
  cannotContinue: 'the node can’t go on with it',
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

/** Why an answer left the place `before`, in a few words. */
export function moveReason(code: string, before: string): string {
  if (camel(code) !== 'failed') return reasonWord(code)
  return isHere(before) ? 'it failed here' : `${placeName(before)} failed`
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
  memorySoon: 'memory runs short here',
  cached: 'the chat was read there already',
  swap: 'this machine is swapping',
  pressure: 'memory is under pressure here',
  thermal: 'too hot here',
}

/** A routing reason as the end of "On studio · 41 tok/s · …". */
export function reasonClause(code: string): string {
  return reasonClauses[camel(code)] ?? reasonWord(code)
}

/** Whose machine a node is, and what that means for what is sent there. */
export const trustWords: Record<Trust, { word: string; sentence: string }> = {
  own: { word: 'Own', sentence: 'Your machine: nobody but you can read what is sent there.' },
  team: { word: 'Team', sentence: 'A machine of people you work with: whoever runs it could read what is sent there.' },
  rented: { word: 'Rented', sentence: 'A stranger’s machine, paid for or public: its owner could read what is sent there.' },
}

/** What was decided, in a word. */
export const kindWords: Record<DecisionKind, string> = {
  start: 'Began',
  move: 'Moved',
  stay: 'Stayed',
  relief: 'Made room',
  lost: 'Failed',
  refused: 'Not answered',
}

/** "in the window", for whoever asked. */
export const askedByWords: Record<AskedBy, string> = { window: 'in the window', gateway: 'by a program', terminal: 'in a terminal' }

/** What a reading of a decision means, in one sentence. */
export const readingWords: Record<string, string> = {
  'Free memory': 'What a model may use here, after what is kept free for the rest.',
  'GPU memory': 'What the GPU may use of the memory.',
  'Memory trend': 'How the free memory has changed over the last minute.',
  'Room for this chat': 'How much more of this chat fits into the memory that is free.',
  'Swap in': 'Memory that comes back from the disk each second: the model waits for it.',
  'Swap used': 'Memory that was put on the disk.',
  Pressure: 'The system’s own verdict on its memory.',
  Heat: 'From Serious on the system slows the machine down to cool it.',
  Speed: 'How fast this model is expected to write here. A token is about three quarters of a word.',
  'Speed now': 'How fast the answer was being written, against what this model usually reaches.',
}
