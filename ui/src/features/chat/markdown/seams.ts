/**
 * Puts the places where an answer moved into its parsed Markdown: between two words where they fall into running text,
 * after the block where they fall into code or a table, which they would break.
 */

import type { Token } from 'marked'
import { unixLines, type Block } from './blocks'

/** `at` counts in the units JavaScript counts in, from the start of the whole text. */
export type Seam = { at: number; key: string }

/** Stands between inline tokens, or, with `block`, between the blocks of a list item. */
export type SeamToken = { type: 'seam'; raw: ''; key: string; block: boolean }

/** Blocks with the seams that fall into them, and those that stand before the block of an index. */
export type Placed = { blocks: Block[]; before: Record<number, string[]> }

type Parent = Token & { tokens?: Token[]; items?: Token[] }

/** Settled blocks are placed once: what stands on screen keeps its tokens. */
const cache = new WeakMap<Token, Map<string, Token | null>>()

export function placeSeams(text: string, blocks: Block[], seams: Seam[]): Placed {
  const placed: Placed = { blocks: [...blocks], before: {} }
  for (const seam of seams) {
    const at = unixLines(text.slice(0, seam.at)).length
    const next = placed.blocks.findIndex((block) => block.start >= at)
    const index = (next < 0 ? placed.blocks.length : next) - 1
    const block = placed.blocks[index]
    const inside = block && isInside(text, block, at) ? placeInside(block, text, at, seam.key) : null
    if (inside) placed.blocks[index] = inside
    else placed.before[index + 1] = [...(placed.before[index + 1] ?? []), seam.key]
  }
  return placed
}

/** A line break between the block's last letter and the seam: the seam stands between two blocks. */
function isInside(text: string, block: Block, at: number): boolean {
  const end = block.start + block.source.trimEnd().length
  return at <= end || !unixLines(text).slice(end, at).includes('\n')
}

function placeInside(block: Block, text: string, at: number, key: string): Block | null {
  const letters = countLetters(unixLines(text).slice(block.start, at))
  const known = cache.get(block.token) ?? new Map<string, Token | null>()
  cache.set(block.token, known)
  const name = `${key}:${letters}`
  let token = known.get(name)
  if (token === undefined) {
    token = into(block.token as Parent, letters, key)
    known.set(name, token)
  }
  return token && { ...block, token }
}

/** Letters are what isn't white space: the parser takes indents and line ends away, and nothing else. */
const countLetters = (text: string) => text.replace(/\s/g, '').length

const seamToken = (key: string, block: boolean) => ({ type: 'seam', raw: '', key, block }) as unknown as Token

/** A token with the seam after its first `letters`; null where nothing may be put into it. */
function into(token: Parent, letters: number, key: string): Token | null {
  const children = token.items ?? token.tokens
  switch (token.type) {
    case 'list':
    case 'list_item':
    case 'paragraph':
    case 'heading':
    case 'strong':
    case 'em':
    case 'del':
    case 'text':
      break
    default:
      return null
  }
  if (!children) return null
  const inner = children.reduce((sum, child) => sum + countLetters(child.raw), 0)
  const marks = countLetters(token.raw) - inner
  if (marks < 0) return null
  // Emphasis has its marks on both sides, headings and list items before what they hold.
  const before = token.type === 'strong' || token.type === 'em' || token.type === 'del' ? marks / 2 : marks
  const placed = among(children, Math.max(0, letters - before), key, token.type)
  return placed && (token.items ? { ...token, items: placed } : ({ ...token, tokens: placed } as Token))
}

function among(children: Token[], letters: number, key: string, parent: string): Token[] | null {
  const holdsBlocks = parent === 'list' || parent === 'list_item'
  let passed = 0
  for (const [index, child] of children.entries()) {
    const length = countLetters(child.raw)
    const isLast = index === children.length - 1
    if (passed + length < letters && !isLast) {
      passed += length
      continue
    }
    const rest = letters - passed
    const split = rest >= length && !holdsBlocks ? null : child.type === 'text' && !(child as Parent).tokens ? splitText(child, rest, key) : wrap(into(child as Parent, rest, key))
    if (split) return children.toSpliced(index, 1, ...split)
    if (parent === 'list') return null
    return children.toSpliced(rest === 0 && !holdsBlocks ? index : index + 1, 0, seamToken(key, holdsBlocks))
  }
  return null
}

const wrap = (token: Token | null) => (token ? [token] : null)

function splitText(token: Token, letters: number, key: string): Token[] | null {
  const { text } = token as Token & { text: string }
  // The parser changed it: where in it the seam belongs isn't known.
  if (text !== token.raw) return null
  let at = 0
  for (let passed = 0; at < text.length && passed < letters; at += 1) if (!/\s/.test(text.charAt(at))) passed += 1
  const part = (piece: string) => ({ ...token, raw: piece, text: piece })
  return [part(text.slice(0, at)), seamToken(key, false), part(text.slice(at))].filter(({ type, raw }) => type === 'seam' || raw !== '')
}
