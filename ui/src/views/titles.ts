import type { Page } from './session.svelte'

export const pageTitles: Record<Exclude<Page, 'chat'>, string> = { models: 'Models', nodes: 'Nodes', history: 'History', settings: 'Settings' }
