import { expect, it } from 'vitest'
import { heal } from './heal'

const cases: [string, string][] = [
  ['a **bold', 'a **bold**'],
  ['a **', 'a '],
  ['a **bold*', 'a **bold**'],
  ['a *slanted', 'a *slanted*'],
  ['a * b', 'a * b'],
  ['2 * 3 * 4', '2 * 3 * 4'],
  ['snake_case_name', 'snake_case_name'],
  ['a `code', 'a `code`'],
  ['a `', 'a '],
  ['a `code`', 'a `code`'],
  ['**one** two **three', '**one** two **three**'],
  ['**a *b', '**a *b***'],
  ['see [the man', 'see the man'],
  ['see [the manual](https://exa', 'see the manual'],
  ['see [the manual](https://example.org)', 'see [the manual](https://example.org)'],
  ['text\n-', 'text\n'],
  ['text\n\n1.', 'text\n\n'],
  ['text\n\n##', 'text\n\n'],
  ['a\n\n| one | two |', 'a\n\n'],
  ['a\n\n| one | two |\n| -', 'a\n\n'],
  ['a\n\n| one | two |\n| --- | --- |', 'a\n\n| one | two |\n| --- | --- |'],
  ['a\n\n```ru', 'a\n\n'],
  ['a\n\n```rust\nlet **x', 'a\n\n```rust\nlet **x'],
  ['a\n\n```rust\nlet x;\n``', 'a\n\n```rust\nlet x;\n'],
  ['- **one', '- **one**'],
]

it.each(cases)('%j becomes %j', (text, healed) => expect(heal(text)).toBe(healed))
