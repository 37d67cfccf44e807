/** A file on its way into the product: over the window, looked at, judged. Pure. */

import type { AddHow, ErrorDto, FitDto, VerdictDto } from '../../ipc/backend'

export type DropState =
  | { step: 'idle' }
  /** Over the window. The verdicts are there once the headers have been read. */
  | { step: 'hovering'; paths: string[]; verdicts: VerdictDto[] | null }
  | { step: 'inspecting'; paths: string[] }
  | { step: 'judged'; verdicts: VerdictDto[]; adding: string | null; added: string[]; error: ErrorDto | null; how: AddHow }

export type DropEvent =
  | { type: 'entered'; paths: string[] }
  | { type: 'left' }
  | { type: 'dropped'; paths: string[] }
  | { type: 'inspected'; paths: string[]; verdicts: VerdictDto[] }
  | { type: 'inspectFailed'; paths: string[]; error: ErrorDto }
  | { type: 'howChosen'; how: AddHow }
  | { type: 'adding'; path: string }
  | { type: 'added'; path: string }
  | { type: 'addFailed'; error: ErrorDto }
  | { type: 'closed' }

const same = (one: string[], other: string[]) => one.length === other.length && one.every((path, index) => path === other[index])

export function reduce(state: DropState, event: DropEvent): DropState {
  switch (event.type) {
    case 'entered':
      return { step: 'hovering', paths: event.paths, verdicts: null }
    case 'left':
      return state.step === 'hovering' ? { step: 'idle' } : state
    case 'dropped':
      if (state.step === 'hovering' && state.verdicts && same(state.paths, event.paths)) return judged(state.verdicts)
      return { step: 'inspecting', paths: event.paths }
    case 'inspected':
      if (state.step === 'hovering' && same(state.paths, event.paths)) return { ...state, verdicts: event.verdicts }
      if (state.step === 'inspecting' && same(state.paths, event.paths)) return judged(event.verdicts)
      return state
    case 'inspectFailed':
      if (state.step !== 'inspecting' || !same(state.paths, event.paths)) return state
      return judged([{ kind: 'refused', title: "The file can't be read", sentence: event.error.sentence, hint: event.error.hint, path: event.paths[0] ?? '' }])
    case 'howChosen':
      return state.step === 'judged' ? { ...state, how: event.how } : state
    case 'adding':
      return state.step === 'judged' ? { ...state, adding: event.path, error: null } : state
    case 'added': {
      if (state.step !== 'judged') return state
      // One file, added: there is nothing left to say.
      if (state.verdicts.length === 1) return { step: 'idle' }
      return { ...state, adding: null, added: [...state.added, event.path] }
    }
    case 'addFailed':
      return state.step === 'judged' ? { ...state, adding: null, error: event.error } : state
    case 'closed':
      return { step: 'idle' }
  }
}

function judged(verdicts: VerdictDto[]): DropState {
  return verdicts.length === 0 ? { step: 'idle' } : { step: 'judged', verdicts, adding: null, added: [], error: null, how: 'reference' }
}

/** The footprint to show on the memory bar for files over the window: the largest one's. */
export function hoverFit(state: DropState): FitDto | null {
  if (state.step !== 'hovering' || !state.verdicts) return null
  const fits = state.verdicts.flatMap((verdict) => (verdict.kind === 'model' && verdict.model.fit ? [verdict.model.fit] : []))
  return fits.reduce<FitDto | null>((largest, fit) => (largest === null || fit.neededBytes > largest.neededBytes ? fit : largest), null)
}
