import type { NodeDto, Trust } from '../../ipc/backend'
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

/** The least trust a node needs to be asked, as what it lets through. */
export const leastTrustWords: Record<Trust, { word: string; sentence: string }> = {
  own: { word: 'Own only', sentence: 'Questions and answers go to your own machines only.' },
  team: { word: 'Own and team', sentence: 'Questions and answers go to your own and your team’s machines.' },
  rented: { word: 'Any node', sentence: 'Questions and answers may go to any node on this list.' },
}
