/** The history of decisions as the page shows it. Pure. */

import type { DecisionEntryDto, DecisionKind } from '../../ipc/backend'
import { isHere, placeName } from '../../ipc/words'

/** How many decisions are asked for at once. */
export const pageLength = 100

export type Filter = {
  kind: DecisionKind | 'all'
  /** `here`, a node's name, or all. */
  place: string
}

export const noFilter: Filter = { kind: 'all', place: 'all' }

export type Day = { label: string; entries: DecisionEntryDto[] }

function startOfDay(ms: number): number {
  return new Date(ms).setHours(0, 0, 0, 0)
}

/** "Today", "Yesterday", "Mon 15 June", and with the year where it is another one. */
export function dayLabel(ms: number, nowMs: number): string {
  const day = startOfDay(ms)
  const today = startOfDay(nowMs)
  if (day >= today) return 'Today'
  if (day === startOfDay(today - 1)) return 'Yesterday'
  const sameYear = new Date(ms).getFullYear() === new Date(nowMs).getFullYear()
  return new Date(ms).toLocaleDateString('en-GB', { weekday: 'short', day: 'numeric', month: 'long', ...(sameYear ? {} : { year: 'numeric' }) })
}

/** "15:04", as the decisions of one day are told apart. */
export function timeOf(ms: number): string {
  return new Date(ms).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' })
}

/** The place of an entry as the filter names it; empty where nothing answered. */
export function placeOf({ decision }: DecisionEntryDto): string {
  if (decision.target === 'refuse') return ''
  return isHere(decision.place) ? 'here' : placeName(decision.place)
}

/** The places that occur, this machine first. */
export function placesIn(entries: DecisionEntryDto[]): string[] {
  const places = [...new Set(entries.map(placeOf))].filter((place) => place !== '' && place !== 'here').sort()
  return entries.some((entry) => placeOf(entry) === 'here') ? ['here', ...places] : places
}

/** The entries that the filter lets through, by day; newest first, as they come. */
export function byDay(entries: DecisionEntryDto[], filter: Filter, nowMs: number): Day[] {
  const days: Day[] = []
  for (const entry of entries) {
    if (filter.kind !== 'all' && entry.kind !== filter.kind) continue
    if (filter.place !== 'all' && placeOf(entry) !== filter.place) continue
    const label = dayLabel(entry.atMs, nowMs)
    const day = days.at(-1)
    if (day?.label === label) day.entries.push(entry)
    else days.push({ label, entries: [entry] })
  }
  return days
}
