import { getContext, setContext, type Snippet } from 'svelte'

/** Draws the seam of a key: in a line of text, or between blocks. */
export type DrawSeam = Snippet<[key: string, inline: boolean]>

const key = Symbol('seam')

export const setSeam = (seam: () => DrawSeam | undefined) => setContext(key, seam)
export const getSeam = () => getContext<(() => DrawSeam | undefined) | undefined>(key)?.()
