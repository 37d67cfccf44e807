import { fileSize, whole } from '../../primitives/format'
import type { Progress } from './reduce'

/** What happens before the first token, and how far it is. `place` is "here" or a node's name. */
export function progressWords(progress: Progress | null, model: string | null, node: string | null): string {
  if (!progress) return node ? `Asking ${node}` : 'Starting'
  const { phase, done, total } = progress
  switch (phase) {
    case 'loading': {
      const name = model ?? 'the model'
      if (total <= 0) return `Loading ${name}`
      const [doneText, unit] = fileSize(total).endsWith('GB') ? [(done / 1e9).toFixed(1), ''] : [String(Math.round(done / 1e6)), '']
      return `Loading ${name}, ${doneText}${unit} of ${fileSize(total)}`
    }
    case 'waiting':
      if (total > 0 && done < total) return `Waiting for ${node ?? 'its turn'} · ${whole(total - done)} before you`
      return node ? `Waiting for ${node}` : 'Waiting for its turn'
    case 'prefill':
      if (total <= 0) return 'Reading the question'
      return `Reading ${whole(total)} tokens, ${Math.round((done / total) * 100)} %`
  }
}
