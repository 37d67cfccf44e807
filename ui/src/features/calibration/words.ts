/** A measurement as people read it. Pure. */

import type { CalibrationDto } from '../../ipc/backend'
import { bandwidth, percent, tokensPerSec } from '../../primitives/format'

/** "Memory 94 GB/s · Qwen3 8B reads 231 tok/s, writes 14 tok/s" */
export function measuredFacts({ modelName, bandwidthBytesPerSec, prefillTokensPerSec, decodeTokensPerSec }: CalibrationDto): string {
  // A number stays on one line with its unit.
  const speed = (value: number) => `${tokensPerSec(value)}\u00a0tok/s`
  return `Memory ${bandwidth(bandwidthBytesPerSec)} · ${modelName} reads ${speed(prefillTokensPerSec)}, writes ${speed(decodeTokensPerSec)}`
}

/** What of the memory's speed writing reaches, in a sentence. */
export function reachedSentence({ reachedRatio }: CalibrationDto): string {
  return reachedRatio > 1
    ? 'Writing is faster than the memory alone allows: part of the model stays in caches.'
    : `Writing reaches ${percent(reachedRatio)} of what the memory could give.`
}

/** "Measuring · 4 s" */
export function measuringWords(seconds: number): string {
  return seconds === 0 ? 'Measuring' : `Measuring · ${seconds} s`
}
