import { describe, expect, it } from 'vitest'
import type { Token, Tokens } from 'marked'
import { extend, finish, noBlocks, type Block, type Blocks } from './blocks'

/** What a reader would see of the blocks, roughly: the leaves' texts. */
function visible(tokens: Token[]): string {
  return tokens
    .map((token): string => {
      if (token.type === 'list') return (token as Tokens.List).items.map((item) => visible([item])).join('\n')
      if (token.type === 'table') {
        const { header, rows } = token as Tokens.Table
        return [...header, ...rows.flat()].map((cell) => visible(cell.tokens)).join(' ')
      }
      const inner = 'tokens' in token ? (token.tokens ?? []) : []
      if (inner.length > 0) return visible(inner)
      return 'text' in token ? String(token.text) : ''
    })
    .join('')
}

const seen = (blocks: Block[]) => blocks.map(({ token }) => visible([token])).join('\n\n')
const all = (blocks: Blocks) => [...blocks.settled, ...blocks.last]

const samples: Record<string, string> = {
  prose: 'One **bold word**, one *slanted one*, `code`, and ~~gone~~.\n\nA [link](https://example.org/a_b) and **another _nested_ one**.',
  code: 'Before\n\n```rust\nlet x = a * b;\n// **not bold**\n```\n\nAfter `x * y`.',
  list: 'Things:\n\n- one\n- **two**\n  - inner\n\n1. first\n2. second\n   ```sh\n   ls\n   ```\n3. third\n\nEnd.',
  table: 'Rates:\n\n| Reading | Limit |\n| --- | ---: |\n| swap | **4** |\n| heat | `serious` |\n\nDone.',
  headings: '# Title\n\n## Second *one*\n\nText\n\n---\n\n> quoted **words**\n> go on\n\nlast',
  strikes: 'Now ~~gone~~ and ~~gone **too**~~, ~5 GB.',
  starsInCode: '```c\nint **p = *q;\n```\nText *after* it, then `a ** b` and **done**.',
  tildes: '~~~python\nprint("*")\n~~~\n',
  japanese: 'ロックは待機の**後**に取得してください。\n\n- 一つ\n- 二つ',
  windows: 'One\r\n\r\n- a\r\n- b\r\n\r\nEnd **now**.\r\n',
}

describe('a text that grows letter by letter', () => {
  for (const [name, text] of Object.entries(samples)) {
    it(`${name}: never takes back a settled block`, () => {
      let blocks = noBlocks
      for (let end = 1; end <= text.length; end += 1) {
        const next = extend(blocks, text.slice(0, end))
        // A line end split in two starts over; that is the one case where nothing is kept.
        if (!text.slice(0, end).endsWith('\r') && !text.slice(0, end - 1).endsWith('\r')) {
          expect(next.settled.slice(0, blocks.settled.length)).toEqual(blocks.settled)
          blocks.settled.forEach((block, index) => expect(next.settled[index]).toBe(block))
        }
        blocks = next
      }
      expect(seen(all(blocks)).trim()).toBe(seen(finish(text)).trim())
    })

    it(`${name}: shows no mark that will not be there at the end`, () => {
      const end = seen(finish(text)).replace(/\s+/g, ' ')
      let blocks = noBlocks
      for (let length = 1; length <= text.length; length += 1) {
        blocks = extend(blocks, text.slice(0, length))
        const now = seen(all(blocks)).replace(/\s+/g, ' ').trim()
        expect(end.startsWith(now), `after ${JSON.stringify(text.slice(Math.max(0, length - 24), length))}: ${JSON.stringify(now.slice(-40))}`).toBe(true)
      }
    })
  }

  it('parses only what is open: a long text settles almost whole', () => {
    const text = Array.from({ length: 200 }, (_, index) => `Paragraph ${index} with **bold** text.\n\n`).join('')
    let blocks = noBlocks
    for (let end = 50; end <= text.length; end += 50) blocks = extend(blocks, text.slice(0, end))
    expect(blocks.settled.length).toBeGreaterThan(195)
    expect(text.length - blocks.settledEnd).toBeLessThan(120)
  })

  it('a table with many bars comes through; it once froze the page', () => {
    const row = `| ${Array.from({ length: 40 }, (_, cell) => `cell ${cell}`).join(' | ')} |\n`
    const text = `${row}| ${'--- | '.repeat(40)}\n${row.repeat(6)}\nTo see it yourself`
    let blocks = noBlocks
    for (let end = 1; end < text.length; end += 9) blocks = extend(blocks, text.slice(0, end))
    blocks = extend(blocks, text)
    expect(all(blocks).map(({ token }) => token.type)).toEqual(['table', 'paragraph'])
  })

  it('comes to the same end however the marks are thrown together', () => {
    const pieces = ['**', '*', '_', '`', '```', '\n', '\n\n', '| ', ' |', '|---|', '- ', '1. ', '> ', '# ', '[', '](', ')', '~~', 'word ', 'two words', ' ', '\\', '<b>', ':', '---', '日本']
    let seed = 7
    const next = (below: number) => (seed = (seed * 48_271) % 2_147_483_647) % below
    for (let round = 0; round < 150; round += 1) {
      const text = Array.from({ length: 24 }, () => pieces[next(pieces.length)]).join('')
      let blocks = noBlocks
      for (let end = 1; end <= text.length; end += 1) {
        const grown = extend(blocks, text.slice(0, end))
        blocks.settled.forEach((block, index) => expect(grown.settled[index]).toBe(block))
        blocks = grown
      }
    }
  })

  it('starts over when the text is another one', () => {
    const first = extend(noBlocks, 'One\n\nTwo words\n\nThree words')
    expect(seen(all(extend(first, 'Other')))).toBe('Other')
  })
})

describe('what a model may not do', () => {
  it('HTML stays text', () => {
    const [block] = finish('<img src=x onerror=alert(1)>')
    expect(block?.token.type).toBe('html')
  })
})
