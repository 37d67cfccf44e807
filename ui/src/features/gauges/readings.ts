/** The machine's readings as gauges: values, words, status, and the limits they are held against. Pure. */

import type { SettingsDto, VitalsDto } from '../../ipc/backend'
import { pressureWords, thermalWords, type Status } from '../../ipc/words'
import { megabytesPerSec, memory, memoryGb, tokensPerSec } from '../../primitives/format'
import type { Part } from '../../primitives/StackedBar.svelte'

/** How many seconds a gauge's line stands for. */
export const span = 60

/** Readings of the last minute, oldest first. */
export type VitalsState = { history: VitalsDto[]; newest: VitalsDto | null }

export const noVitals: VitalsState = { history: [], newest: null }

export function reduceVitals(state: VitalsState, snapshot: VitalsDto): VitalsState {
  if (state.newest && snapshot.atMs < state.newest.atMs) return state
  const since = snapshot.atMs - span * 1000
  return { history: [...state.history.filter(({ atMs }) => atMs >= since), snapshot], newest: snapshot }
}

/** One value for each second of the minute, the newest last; seconds without a reading stay unknown. */
export function perSecond(state: VitalsState, read: (snapshot: VitalsDto) => number | null, seconds = span): (number | null)[] {
  const { newest } = state
  if (!newest) return []
  const values: (number | null)[] = Array.from({ length: seconds + 1 }, () => null)
  let previous: { at: number; value: number } | null = null
  for (const snapshot of state.history) {
    const at = seconds - Math.round((newest.atMs - snapshot.atMs) / 1000)
    if (at < 0) continue
    const value = read(snapshot)
    // Snapshots come every five seconds while nothing is visible: the line goes on between them.
    if (previous && value !== null && at - previous.at <= 6) {
      for (let between = previous.at + 1; between < at; between += 1) {
        values[between] = previous.value + ((value - previous.value) * (between - previous.at)) / (at - previous.at)
      }
    }
    values[at] = value
    previous = value === null ? null : { at, value }
  }
  return values
}

export type Gauge = {
  /** The headline and its unit; null while unknown. */
  value: string | null
  unit: string
  /** One word or figure beside the name. */
  aside: string | null
  status: Status
  /** The status in a word, for those who cannot see its colour. */
  word: string
  /** Where the number comes from and what it means; or why it is not known. */
  about: string
}

function why(vitals: VitalsDto | null, reading: string): string {
  if (!vitals) return 'No reading has arrived yet.'
  const entry = vitals.unavailable.find((each) => each.reading.startsWith(reading))
  return entry ? `Not known: ${entry.why}` : 'Not known on this machine.'
}

const unknown = (about: string): Gauge => ({ value: null, unit: '', aside: null, status: 'unknown', word: 'not known', about })

/** What the machine really has: a container's limit where it is below the RAM. */
export function memoryTotal(vitals: VitalsDto): number | null {
  if (!vitals.memory) return null
  const { totalBytes, limitBytes } = vitals.memory
  return limitBytes === null ? totalBytes : Math.min(totalBytes, limitBytes)
}

export function memoryGauge(vitals: VitalsDto | null, settings: SettingsDto): Gauge {
  const total = vitals ? memoryTotal(vitals) : null
  if (!vitals?.memory || total === null) return unknown(why(vitals, 'memory'))
  const { usedBytes, availableBytes } = vitals.memory
  const level = vitals.pressure ? pressureWords[vitals.pressure].status : 'calm'
  const short = availableBytes < settings.reserveBytes
  const status: Status = level === 'critical' ? 'critical' : level === 'near' || short ? 'near' : 'calm'
  const word = { calm: 'calm', near: 'near', critical: 'critical', offloaded: '', unknown: '' }[status]
  const { givenBackBytes, weightsBytes } = vitals
  const unload = weightsBytes === 0 && givenBackBytes ? ` The last unload of a model gave back ${memory(givenBackBytes)}, as measured.` : ''
  return {
    value: memoryGb(usedBytes),
    unit: `of ${memory(total)}`,
    aside: word,
    status,
    word,
    about: `Memory in use, counted as the system's own monitor does. ${memory(availableBytes)} can be had now; Tidegate leaves ${memory(settings.reserveBytes)} to other apps.${unload}`,
  }
}

/** The bar's parts: what is ours is taken out of what is used, and the rest is other apps. */
export function memoryParts(vitals: VitalsDto | null): Part[] {
  const total = vitals ? memoryTotal(vitals) : null
  if (!vitals?.memory || !total) return []
  const { usedBytes, wiredBytes, compressedBytes } = vitals.memory
  const wired = wiredBytes ?? 0
  const compressed = compressedBytes ?? 0
  const ours = vitals.weightsBytes + vitals.kvCacheBytes
  const apps = Math.max(0, usedBytes - wired - compressed - ours)
  const parts: Part[] = []
  const add = (kind: Part['kind'], label: string, bytes: number) => {
    if (bytes > 0) parts.push({ kind, label, ratio: Math.min(1, bytes / total), value: memory(bytes) })
  }
  add('apps', wiredBytes === null ? 'apps and system' : 'apps', apps)
  add('wired', 'wired', wired)
  add('compressed', 'compressed', compressed)
  add('weights', 'weights', vitals.weightsBytes)
  add('cache', 'cache', vitals.kvCacheBytes)
  return parts
}

/** Where the reserve begins on the bar, 0 to 1. */
export function memoryLimit(vitals: VitalsDto | null, settings: SettingsDto): number | null {
  const total = vitals ? memoryTotal(vitals) : null
  return total ? Math.max(0, 1 - settings.reserveBytes / total) : null
}

export function swapRate(vitals: VitalsDto): number | null {
  if (!vitals.swap) return null
  const { inPerSec, outPerSec } = vitals.swap
  return inPerSec === null && outPerSec === null ? null : (inPerSec ?? 0) + (outPerSec ?? 0)
}

export function swapGauge(vitals: VitalsDto | null, settings: SettingsDto): Gauge {
  if (!vitals?.swap) return unknown(why(vitals, 'swap'))
  const { inPerSec, outPerSec, usedBytes, totalBytes } = vitals.swap
  const aside = totalBytes === 0 && usedBytes === 0 ? 'no swap' : `${memory(usedBytes)} used`
  const rate = swapRate(vitals)
  const ram = vitals.memory?.totalBytes ?? null
  const swapping = inPerSec !== null && inPerSec > settings.maxSwapInPerSec
  const full = ram !== null && usedBytes > ram * settings.maxSwapUsedRatio
  const status: Status = swapping ? 'critical' : full ? 'near' : 'calm'
  const word = swapping ? 'swapping' : full ? 'much in use' : 'calm'
  const about =
    rate === null
      ? why(vitals, 'swap.in')
      : `Moved between memory and disk: ${megabytesPerSec(inPerSec ?? 0)} MB/s in, ${megabytesPerSec(outPerSec ?? 0)} MB/s out. The rate is what slows the machine; more than ${megabytesPerSec(settings.maxSwapInPerSec)} MB/s in hands work off.`
  return { value: rate === null ? null : megabytesPerSec(rate), unit: 'MB/s', aside, status, word, about }
}

export type HeatKind = 'heat' | 'temperature' | 'pressure'

/** Heat in the system's four words; without them the temperature, or memory pressure, in its place. */
export function heatGauge(vitals: VitalsDto | null, settings: SettingsDto): Gauge & { label: string; kind: HeatKind } {
  if (vitals?.thermal) {
    const { status, word } = thermalWords[vitals.thermal]
    const order = ['nominal', 'fair', 'serious', 'critical']
    const over = order.indexOf(vitals.thermal) >= order.indexOf(settings.maxThermal)
    const temperature = vitals.temperatureCelsius === null ? null : `${Math.round(vitals.temperatureCelsius)} °C`
    const finer = vitals.thermalPressure?.toLowerCase() ?? null
    return {
      label: 'Heat',
      kind: 'heat',
      value: word,
      unit: '',
      aside: temperature ?? (finer && finer !== vitals.thermal ? finer : null),
      status: over && status === 'calm' ? 'near' : status,
      word: word.toLowerCase(),
      about: `The system's own four words for heat${finer ? `; the finer level is ${finer}` : ''}. ${thermalWords[settings.maxThermal].word} or worse hands work off.`,
    }
  }
  if (vitals && vitals.temperatureCelsius !== null) {
    return {
      label: 'Heat',
      kind: 'temperature',
      value: `${Math.round(vitals.temperatureCelsius)}`,
      unit: '°C',
      aside: null,
      status: 'calm',
      word: 'measured',
      about: 'The hottest sensor that can be read. This system has no word for what it means, so the policy does not use it.',
    }
  }
  if (vitals?.pressure) {
    const { status, word } = pressureWords[vitals.pressure]
    return {
      label: 'Pressure',
      kind: 'pressure',
      value: word,
      unit: '',
      aside: 'memory',
      status,
      word: word.toLowerCase(),
      about: `How hard the system works to find free memory. ${why(vitals, 'thermal').replace('Not known', 'Heat is not known')}`,
    }
  }
  return { ...unknown(why(vitals, 'thermal')), label: 'Heat', kind: 'heat' }
}

export function heatValue(kind: HeatKind): (vitals: VitalsDto) => number | null {
  if (kind === 'temperature') return (vitals) => vitals.temperatureCelsius
  if (kind === 'pressure') return (vitals) => (vitals.pressure ? ['normal', 'warning', 'critical'].indexOf(vitals.pressure) + 0.5 : null)
  return (vitals) => (vitals.thermal ? ['nominal', 'fair', 'serious', 'critical'].indexOf(vitals.thermal) + 0.5 : null)
}

export function cpuGauge(vitals: VitalsDto | null): Gauge {
  if (!vitals || vitals.cpuBusyRatio === null) return unknown(why(vitals, 'cpu'))
  const gpu = vitals.gpuBusyRatio
  return {
    value: `${Math.round(vitals.cpuBusyRatio * 100)}`,
    unit: '%',
    aside: gpu === null ? null : `GPU ${Math.round(gpu * 100)} %`,
    status: 'calm',
    word: 'measured',
    about: 'How busy all cores are together, over the last second. The policy does not use it.',
  }
}

export function speedGauge(vitals: VitalsDto | null): Gauge {
  const baseline = vitals?.baselineTokensPerSec ?? null
  const aside = baseline === null ? null : `usual ${tokensPerSec(baseline)}`
  if (!vitals || vitals.decodeTokensPerSec === null) {
    const about = baseline === null ? 'Measured while an answer is being written.' : `Measured while an answer is being written. This model usually makes ${tokensPerSec(baseline)} tokens a second here.`
    return { ...unknown(about), aside }
  }
  const slow = baseline !== null && vitals.decodeTokensPerSec < baseline * 0.85
  return {
    value: tokensPerSec(vitals.decodeTokensPerSec),
    unit: 'tok/s',
    aside,
    status: slow ? 'near' : 'calm',
    word: slow ? 'slower than usual' : 'as usual',
    about:
      baseline === null
        ? 'Tokens a second of the answer being written. There is no usual speed for this model yet.'
        : `Tokens a second of the answer being written, against what this model usually makes here: ${tokensPerSec(baseline)}.`,
  }
}

/** What a screen reader is told: only what changed its state. */
export function announcement(before: Record<string, Gauge>, after: Record<string, Gauge>): string {
  return Object.entries(after)
    .filter(([name, gauge]) => {
      const was = before[name]
      return was !== undefined && was.status !== gauge.status && was.status !== 'unknown' && gauge.status !== 'unknown'
    })
    .map(([name, gauge]) => `${name}: ${gauge.word}`)
    .join('. ')
}
