import type { FitDto } from '../ipc/backend'
import type { Ghost, Part } from '../primitives/StackedBar.svelte'

/** What a model would add to the memory bar. Nothing for one that is already in it. */
export function ghostOf(fit: FitDto | null, loaded: boolean, totalBytes: number | null, parts: Part[]): Ghost | null {
  if (!fit || loaded || !totalBytes) return null
  const used = parts.reduce((sum, part) => sum + part.ratio, 0)
  return { ratio: Math.max(0, Math.min(fit.neededBytes / totalBytes, 1 - used)), over: fit.verdict === 'tooBig' }
}
