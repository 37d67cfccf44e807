import { camel } from '../../ipc/words'

export type FailureActions = { here: boolean; again: string; details: boolean }

const ofNodes = new Set(['nodeUnreachable', 'nodeUnauthorized', 'nodeFailed', 'cutOff'])

/** What can be done about a failed answer. `code` is null for one that was read back from the store. */
export function failureActions(code: string | null, wasOnNode: boolean): FailureActions {
  const name = code === null ? null : camel(code)
  return {
    here: name === null ? wasOnNode : ofNodes.has(name),
    again: name === 'engineFailed' ? 'Start again' : 'Try again',
    details: name === 'engineFailed' || name === 'internal',
  }
}
