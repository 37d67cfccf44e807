import { expect, it } from 'vitest'
import type { Token, Tokens } from 'marked'
import { extend, finish, noBlocks } from './blocks'
import { placeSeams, type Placed } from './seams'

/** The leaves' texts, with `|` for a seam in a line and `‖` for one between blocks. */
function visible(token: Token): string {
  const { type } = token as { type: string }
  if (type === 'seam') return (token as unknown as { block: boolean }).block ? '‖' : '|'
  if (type === 'list') return (token as Tokens.List).items.map(visible).join('\n')
  const inner = 'tokens' in token ? (token.tokens ?? []) : []
  return inner.length > 0 ? inner.map(visible).join('') : 'text' in token ? String(token.text) : ''
}

function shown({ blocks, before }: Placed): string {
  const parts = blocks.map(({ token }, index) => '‖'.repeat(before[index]?.length ?? 0) + visible(token))
  return parts.join('\n\n') + '‖'.repeat(before[blocks.length]?.length ?? 0)
}

/** `text` has `^` where the answer moved. */
function check(text: string, expected: string) {
  const at = text.indexOf('^')
  const whole = text.replace('^', '')
  expect(shown(placeSeams(whole, finish(whole), [{ at, key: '1' }]))).toBe(expected)
}

it('stands in a line of text at the very letter', () => {
  check('A task that^ waits.', 'A task that| waits.')
  check('A task th^at waits.', 'A task th|at waits.')
  check('First.\n\nA **bold wo^rd** here.', 'First.\n\nA bold wo|rd here.')
  check('A *slanted* ^word.', 'A slanted| word.')
  check('## A ti^tle\n\nText', 'A ti|tle\n\nText')
  check('Über 🌊^ hinaus', 'Über 🌊| hinaus')
  check('one\r\ntwo^ three\r\n\r\nfour', 'one\ntwo| three\n\nfour')
})

it('stands after what it would break', () => {
  check('Look:\n\n```rust\nlet ^x = 1;\n```\n\nThere.', 'Look:\n\nlet x = 1;\n\n‖There.')
  check('| a | b |\n| - | - |\n| 1 ^| 2 |\n\nEnd', '\n\n‖End')
  check('Use `let ^x` here.', 'Use let x| here.')
  check('See [the ^manual](https://example.org).', 'See the manual|.')
  check('> quo^ted\n\nEnd', 'quoted\n\n‖End')
})

it('stands between blocks where no letter of the next was written', () => {
  check('One.\n\n^Two.', 'One.\n\n‖Two.')
  check('^One.', '‖One.')
  check('One.^\n\nTwo.', 'One.|\n\nTwo.')
  check('One.\n\nTwo.^', 'One.\n\nTwo.|')
})

it('finds its place in a list', () => {
  check('- one\n- tw^o\n- three', 'one\ntw|o\nthree')
  check('1. first\n2. second\n   - in^ner\n3. third', 'first\nsecondin|ner\nthird')
  check('- one\n\n  ```sh\n  l^s\n  ```\n\n- two', 'onels‖\ntwo')
})

it('two of them keep their order', () => {
  const text = 'One two three.'
  expect(shown(placeSeams(text, finish(text), [{ at: 3, key: '1' }, { at: 7, key: '2' }]))).toBe('One| two| three.')
})

it('stays where it is while the text grows', () => {
  const text = 'A first block.\n\nAnd **then another one** with `code` in it.\n\n- a list\n- with two items\n\nThe end.'
  const at = text.indexOf('another')
  let blocks = noBlocks
  const letters = (part: string) => part.replace(/[\s‖]/g, '')
  for (let end = at; end <= text.length; end += 1) {
    blocks = extend(blocks, text.slice(0, end))
    const [before = ''] = letters(shown(placeSeams(text.slice(0, end), [...blocks.settled, ...blocks.last], [{ at, key: '1' }]))).split('|')
    expect(before, text.slice(0, end)).toBe('Afirstblock.Andthen')
  }
})
