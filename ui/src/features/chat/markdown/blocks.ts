/**
 * Streaming Markdown. Text is split at block boundaries that can no longer change; only the last block is parsed again
 * when more arrives, so what stands on screen stays as it is.
 */

import { Lexer, type Token } from 'marked'
import { heal } from './heal'

export type Block = {
  /** Where the block's source starts in the whole text: its identity while text is appended. */
  start: number
  source: string
  token: Token
}

export type Blocks = { settled: Block[]; settledEnd: number; last: Block[]; text: string }

export const noBlocks: Blocks = { settled: [], settledEnd: 0, last: [], text: '' }

/** The lexer counts line ends as one character each; so must the offsets. */
export const unixLines = (text: string) => text.replace(/\r\n?/g, '\n')

function lex(source: string): Token[] {
  return new Lexer({ gfm: true, breaks: false }).lex(source)
}

function toBlocks(tokens: Token[], offset: number): Block[] {
  const blocks: Block[] = []
  let start = offset
  for (const token of tokens) {
    if (token.type !== 'space' && token.type !== 'def') blocks.push({ start, source: token.raw, token })
    start += token.raw.length
  }
  return blocks
}

/** Takes in a text that is the previous one with more at its end, and parses only what is not settled yet. */
export function extend(previous: Blocks, grownText: string): Blocks {
  const text = unixLines(grownText)
  if (text === previous.text) return previous
  const grown = previous.text !== '' && text.startsWith(previous.text) ? previous : noBlocks
  let { settledEnd } = grown
  const tail = text.slice(settledEnd)
  const tokens = lex(tail)

  // Everything before the last block that holds something is settled, once that last block has shown what it is:
  // a lone "-" or "2" may still turn out to continue a list.
  let lastIndex = tokens.length - 1
  while (lastIndex > 0 && tokens[lastIndex]?.type === 'space') lastIndex -= 1
  const last = tokens[lastIndex]
  const recognisable = last !== undefined && (last.raw.trim().length > 4 || last.raw.includes('\n'))
  let settled = grown.settled
  if (lastIndex > 0 && recognisable) {
    const before = tokens.slice(0, lastIndex)
    settled = [...settled, ...toBlocks(before, settledEnd)]
    settledEnd += before.reduce((sum, token) => sum + token.raw.length, 0)
  }

  const open = text.slice(settledEnd)
  return { settled, settledEnd, last: toBlocks(lex(heal(open)), settledEnd), text }
}

/** A finished text: parsed as a whole. */
export function finish(text: string): Block[] {
  return toBlocks(lex(unixLines(text)), 0)
}
