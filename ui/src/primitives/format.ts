/**
 * Numbers as people read them. Memory is counted as Activity Monitor counts it (1 GB = 2³⁰ bytes),
 * files as Finder does (1 GB = 10⁹ bytes): two functions, used everywhere.
 */

const count = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 })

function scaled(bytes: number, base: number): { value: string; unit: string } {
  const units = ['bytes', 'KB', 'MB', 'GB', 'TB']
  let value = Math.max(0, bytes)
  let step = 0
  while (value >= base && step < units.length - 1) {
    value /= base
    step += 1
  }
  // 999.6 MB would print as "1000 MB": move on to the next unit instead.
  if (step > 0 && step < units.length - 1 && Math.round(value) >= base) {
    value /= base
    step += 1
  }
  const digits = step >= 3 && value < 100 ? 1 : 0
  return { value: value.toFixed(digits), unit: units[step] ?? 'bytes' }
}

/** Memory in bytes → "21.6 GB" with 1 GB = 2³⁰. */
export function memory(bytes: number): string {
  if (bytes >= 2 ** 30 && bytes % 2 ** 30 === 0) return `${bytes / 2 ** 30} GB`
  const { value, unit } = scaled(bytes, 1024)
  return `${value} ${unit}`
}

/** Memory in bytes as a bare number of GB (2³⁰): "21.6". */
export function memoryGb(bytes: number): string {
  const value = bytes / 2 ** 30
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)
}

/** A file's bytes → "5.0 GB" with 1 GB = 10⁹. */
export function fileSize(bytes: number): string {
  const { value, unit } = scaled(bytes, 1000)
  return `${value} ${unit}`
}

/** Bytes a second as a bare number of MB/s (2²⁰): "0", "3.2", "41". */
export function megabytesPerSec(bytes: number): string {
  const value = bytes / 2 ** 20
  if (value < 0.05) return '0'
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0)
}

/** Memory's bandwidth → "94 GB/s" with 1 GB = 10⁹, as makers of memory state it. */
export function bandwidth(bytesPerSec: number): string {
  const value = bytesPerSec / 1e9
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} GB/s`
}

/** Tokens a second: "52", "3.4". */
export function tokensPerSec(value: number): string {
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0)
}

/** A context length in tokens: "8k", "40k", "4,000". */
export function contextLen(tokens: number): string {
  if (tokens >= 1024 && tokens % 1024 === 0) return `${tokens / 1024}k`
  if (tokens >= 10_000) return `${Math.round(tokens / 1000)}k`
  return count.format(tokens)
}

/** A model's parameters: "14.8B", "494M". */
export function parameters(value: number): string {
  if (value >= 1e9) return `${(value / 1e9).toFixed(value >= 1e11 ? 0 : 1)}B`
  return `${Math.round(value / 1e6)}M`
}

export function whole(value: number): string {
  return count.format(value)
}

/** A ratio from 0 to 1: "31 %". */
export function percent(ratio: number): string {
  return `${Math.round(ratio * 100)} %`
}

export function milliseconds(value: number): string {
  if (value < 1) return 'under 1 ms'
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`
}

/** A path as people write it: the home folder is "~". */
export function shortPath(path: string): string {
  return path.replace(/^\/(?:Users|home)\/[^/]+(?=\/|$)/, '~')
}

/** The last part of a path. */
export function fileName(path: string): string {
  return path.split(/[/\\]/).pop() || path
}
