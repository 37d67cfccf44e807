import type { NodeDto, SettingsDto, Trust } from '../../ipc/backend'
import { isHere, placeName } from '../../ipc/words'
import { tokensPerSec } from '../../primitives/format'

/** A place that an answer could go on at. */
export type MovePlace = {
  /** `here`, or a node's id. */
  id: string
  name: string
  /** How fast it was, or why it can't. */
  detail: string
  disabled: boolean
}

const trustRank: Record<Trust, number> = { rented: 0, team: 1, own: 2 }

/** Whether what is asked may be sent to a node that is trusted so far. */
export const mayGoTo = (trust: Trust, least: SettingsDto['leastTrust']): boolean => trustRank[trust] >= trustRank[least]

/** Everywhere but where the answer is written now. */
export function movePlaces(current: string, nodes: NodeDto[], least: Trust): MovePlace[] {
  const here: MovePlace[] = isHere(current) ? [] : [{ id: 'here', name: 'This Mac', detail: '', disabled: false }]
  const others = nodes.filter(({ name }) => isHere(current) || name !== placeName(current))
  return [
    ...here,
    ...others.map(({ id, name, state, trust, decodeTokensPerSec }): MovePlace => {
      if (!mayGoTo(trust, least)) return { id, name, detail: `${trust}: chats may not go there`, disabled: true }
      if (state !== 'ready' && state !== 'unknown') return { id, name, detail: 'not reachable', disabled: true }
      return { id, name, detail: decodeTokensPerSec === null ? '' : `${tokensPerSec(decodeTokensPerSec)} tok/s`, disabled: false }
    }),
  ]
}
