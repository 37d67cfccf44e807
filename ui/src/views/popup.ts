import { getContext, setContext } from 'svelte'
import type { GaugeName } from '../features/gauges/HourCard.svelte'
import type { DecisionEntryDto, MessageDto } from '../ipc/backend'

/** What is raised beside its anchor; one at a time. */
export type Popup =
  | { kind: 'decision'; anchor: HTMLElement; message: MessageDto; part: number }
  | { kind: 'entry'; anchor: HTMLElement; entry: DecisionEntryDto }
  | { kind: 'move'; anchor: HTMLElement; message: MessageDto }
  | { kind: 'gauge'; anchor: HTMLElement; name: GaugeName }
  | { kind: 'models'; anchor: HTMLElement }

type Opener = (popup: Popup) => void
const key = Symbol('popup')

export const setOpener = (open: Opener) => setContext(key, open)
export const getOpener = () => getContext<Opener>(key)
