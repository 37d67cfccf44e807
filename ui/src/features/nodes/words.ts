import type { NodeDto } from '../../ipc/backend'
import type { Status } from '../../ipc/words'

export const nodeWords: Record<NodeDto['state'], { status: Status; word: string }> = {
  ready: { status: 'calm', word: 'Ready' },
  unknown: { status: 'unknown', word: 'Not tested yet' },
  unreachable: { status: 'critical', word: 'Not reachable' },
  unauthorized: { status: 'near', word: 'Key refused' },
  notANode: { status: 'critical', word: 'Not a node' },
}

/** "2 ready", "1 of 2 ready", "none": beside Nodes in the sidebar. */
export function nodesSummary(nodes: NodeDto[]): string {
  if (nodes.length === 0) return 'none'
  const ready = nodes.filter(({ state }) => state === 'ready').length
  return ready === nodes.length ? `${ready} ready` : `${ready} of ${nodes.length} ready`
}
