/** A gauge's last hour, thinned to what a small drawing can show. Pure. */

import type { SettingsDto, VitalsDto } from '../../ipc/backend'
import { thermalWords } from '../../ipc/words'
import { megabytesPerSec, memory, percent, tokensPerSec } from '../../primitives/format'
import { cpuGauge, heatGauge, heatValue, memoryGauge, memoryTotal, speedGauge, swapGauge, swapRate } from './readings'

export type Hour = {
  title: string
  about: string
  known: boolean
  values: (number | null)[]
  span: number
  minutes: number
  top: number
  rule: number | null
  ruleTone: 'near' | 'muted'
  figures: { label: string; value: string }[]
}

const steps = 180

type Drawing = {
  title: string
  about: string
  read: (vitals: VitalsDto) => number | null
  show: (value: number) => string
  top: (most: number) => number
  rule: number | null
  ruleTone?: 'muted'
}

function drawing(name: 'memory' | 'swap' | 'heat' | 'cpu' | 'speed', newest: VitalsDto | null, settings: SettingsDto): Drawing {
  switch (name) {
    case 'memory': {
      const total = newest ? memoryTotal(newest) : null
      return {
        title: 'Memory in use',
        about: memoryGauge(newest, settings).about,
        read: (vitals) => vitals.memory?.usedBytes ?? null,
        show: memory,
        top: (most) => total ?? most,
        rule: total === null ? null : total - settings.reserveBytes,
      }
    }
    case 'swap':
      return {
        title: 'Swap, in and out',
        about: swapGauge(newest, settings).about,
        read: swapRate,
        show: (value) => `${megabytesPerSec(value)} MB/s`,
        top: (most) => Math.max(most, settings.maxSwapInPerSec * 1.6),
        rule: settings.maxSwapInPerSec,
      }
    case 'heat': {
      const heat = heatGauge(newest, settings)
      const order = ['nominal', 'fair', 'serious', 'critical'] as const
      return {
        title: heat.label,
        about: heat.about,
        read: heatValue(heat.kind),
        show: (value) =>
          heat.kind === 'temperature'
            ? `${Math.round(value)} °C`
            : heat.kind === 'pressure'
              ? (['Normal', 'Warning', 'Critical'][Math.floor(value)] ?? '')
              : thermalWords[order[Math.floor(value)] ?? 'nominal'].word,
        top: () => ({ heat: 4, temperature: 110, pressure: 3 })[heat.kind],
        rule: heat.kind === 'heat' ? order.indexOf(settings.maxThermal) : heat.kind === 'pressure' ? 1 : null,
      }
    }
    case 'cpu':
      return { title: 'CPU', about: cpuGauge(newest).about, read: (vitals) => vitals.cpuBusyRatio, show: percent, top: () => 1, rule: null }
    case 'speed':
      return {
        title: 'Speed of answers',
        about: speedGauge(newest).about,
        read: (vitals) => vitals.decodeTokensPerSec,
        show: (value) => `${tokensPerSec(value)} tok/s`,
        top: (most) => Math.max(most * 1.1, (newest?.baselineTokensPerSec ?? 1) * 1.35),
        rule: newest?.baselineTokensPerSec ?? null,
        ruleTone: 'muted',
      }
  }
}

export function hourOf(name: 'memory' | 'swap' | 'heat' | 'cpu' | 'speed', history: VitalsDto[], newest: VitalsDto | null, settings: SettingsDto): Hour {
  const { title, about, read, show, top, rule, ruleTone } = drawing(name, newest, settings)
  const [first] = history
  const last = history.at(-1)
  const length = first && last ? Math.max(60_000, last.atMs - first.atMs) : 60_000
  const values: (number | null)[] = Array.from({ length: steps + 1 }, () => null)
  for (const snapshot of history) {
    if (!last) break
    const at = steps - Math.round(((last.atMs - snapshot.atMs) / length) * steps)
    const value = read(snapshot)
    // Of the readings that share a step the highest is drawn: a short peak is what one looks for.
    if (at >= 0 && value !== null) values[at] = Math.max(values[at] ?? value, value)
  }
  for (let at = 1; at < steps; at += 1) {
    const [before, own, after] = [values[at - 1] ?? null, values[at] ?? null, values[at + 1] ?? null]
    if (own === null && before !== null && after !== null) values[at] = (before + after) / 2
  }
  const known = history.map(read).filter((value) => value !== null)
  const most = known.reduce((highest, value) => Math.max(highest, value), 0)
  const least = known.reduce((lowest, value) => Math.min(lowest, value), Infinity)
  const latest = newest ? read(newest) : null
  const figures = known.length === 0 ? [] : [{ label: 'Now', value: latest === null ? '—' : show(latest) }, { label: 'Lowest', value: show(least) }, { label: 'Highest', value: show(most) }]
  return { title, about, known: known.length > 1, values, span: steps, minutes: Math.round(length / 60_000), top: top(most), rule, ruleTone: ruleTone ?? 'near', figures }
}
