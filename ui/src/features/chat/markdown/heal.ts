/**
 * Makes the unfinished end of a streamed text look like what it is going to be: emphasis and code are closed, and what
 * could still become anything (a lone marker, half a link, a table's first row) is held back for a moment.
 */

const lonelyMarker = /(^|\n)[ \t>]*(?:[-*+_#`~=|:]+|#{1,6}|\d{1,9}[.)]?|[-*+] \[[ xX]?\]?)[ \t]*$/

export function heal(text: string): string {
  const { open, closedEnd } = fences(text)
  if (open !== null) return healFence(text, open)
  // Code that has ended is finished: nothing in it may be taken for a mark.
  const code = text.slice(0, closedEnd)
  let healed = text.slice(closedEnd).replace(lonelyMarker, '$1')
  healed = holdTable(healed)
  const start = lastInlineRun(healed)
  return code + healed.slice(0, start) + healInline(healed.slice(start))
}

type Fence = { marker: string; start: number; bodyStart: number | null }

/** The code fence that is open at the end of the text, if one is, and where the last one before it ended. */
function fences(text: string): { open: Fence | null; closedEnd: number } {
  let open: Fence | null = null
  let closedEnd = 0
  let at = 0
  for (const line of text.split('\n')) {
    const complete = at + line.length < text.length
    const match = /^\s*(?:>\s*|[-*+]\s+|\d+[.)]\s+)*(`{3,}|~{3,})(.*)$/.exec(line)
    if (match) {
      const [, marker = '', rest = ''] = match
      if (open === null) {
        if (!(marker.startsWith('`') && rest.includes('`'))) {
          open = { marker, start: at, bodyStart: complete ? at + line.length + 1 : null }
        }
      } else if (marker[0] === open.marker[0] && marker.length >= open.marker.length && rest.trim() === '') {
        open = null
        closedEnd = Math.min(at + line.length, text.length)
      }
    }
    at += line.length + 1
  }
  return { open, closedEnd }
}

function healFence(text: string, fence: Fence): string {
  // The line that opens the fence is not whole yet: its language would change with every letter.
  if (fence.bodyStart === null) return text.slice(0, fence.start)
  // A last line of one or two marks is most likely the closing fence on its way.
  const mark = fence.marker[0] === '~' ? '~' : '`'
  return text.replace(new RegExp(`\\n[ \\t]*${mark}{1,2}$`), '\n')
}

/**
 * Rows that start with a bar, and are not a table yet, wait for the row that makes them one. Goes by lines: one pattern
 * for all of it would take exponential time on a table with many bars.
 */
function holdTable(text: string): string {
  const lines = text.split('\n')
  let first = lines.length
  // The last line may be empty: the row before it is complete.
  if (lines.at(-1) === '') first -= 1
  while (first > 0 && lines[first - 1]?.trimStart().startsWith('|')) first -= 1
  const rows = lines.slice(first).filter((line) => line !== '')
  const [head, delimiter] = rows
  if (head === undefined) return text
  const bars = (row: string) => row.split('|').length
  if (delimiter !== undefined && /^[ \t:|-]+$/.test(delimiter) && delimiter.includes('-') && bars(delimiter) >= bars(head)) return text
  return lines.slice(0, first).map((line) => `${line}\n`).join('')
}

/** Where the last run of inline text starts: emphasis never reaches over a blank line or into the next list item. */
function lastInlineRun(text: string): number {
  const boundary = /(?:^|\n)[ \t]*(?:\n|(?:>[ \t]?)*(?:#{1,6}[ \t]+|[-*+][ \t]+|\d{1,9}[.)][ \t]+))/g
  let start = 0
  for (let match = boundary.exec(text); match; match = boundary.exec(text)) {
    start = match.index + match[0].length
    boundary.lastIndex = Math.max(match.index + 1, start - 1)
  }
  return start
}

const isSpace = (letter: string | undefined) => letter === undefined || /\s/.test(letter)
const isWord = (letter: string | undefined) => letter !== undefined && /[\p{L}\p{N}]/u.test(letter)

function healInline(text: string): string {
  const open: { mark: string; end: number }[] = []
  let bracket: number | null = null
  let at = 0
  while (at < text.length) {
    const letter = text[at]
    if (letter === '\\') {
      at += 2
      continue
    }
    if (letter === '`') {
      const run = /^`+/.exec(text.slice(at))?.[0] ?? '`'
      const close = text.indexOf(run, at + run.length)
      if (close < 0) {
        const body = text.slice(at + run.length)
        // Nothing after the mark yet: it waits.
        if (body.trim() === '') return closeAll(text.slice(0, at), open)
        return closeAll(text + (body.endsWith('`') ? ' ' : '') + run, open)
      }
      at = close + run.length
      continue
    }
    if (letter === '[') {
      bracket = at
      at += 1
      continue
    }
    if (letter === ']' && bracket !== null) {
      const from: number = bracket
      bracket = null
      if (text[at + 1] === undefined || (text[at + 1] === '(' && !text.slice(at + 1).includes(')'))) {
        // Half a link: its text stands, the address waits.
        const label = text.slice(from + 1, at)
        const before = text.slice(0, from).replace(/!$/, '')
        return closeAll(before + label, open.filter((mark) => mark.end <= from))
      }
      at += 1
      continue
    }
    // One tilde at the very end may be half of two.
    if (letter === '~' && at === text.length - 1 && text[at - 1] !== '~') return closeAll(text.slice(0, at), open)
    if (letter === '*' || letter === '_' || letter === '~') {
      const run = new RegExp(`^\\${letter}+`).exec(text.slice(at))?.[0] ?? letter
      const before = text[at - 1]
      const after = text[at + run.length]
      const mark = letter === '~' ? (run.length >= 2 ? '~~' : '') : run.slice(0, 3)
      if (mark !== '') toggle(open, mark, at, at + run.length, before, after)
      at += run.length
      continue
    }
    at += 1
  }
  if (bracket !== null && !text.slice(bracket).includes('\n')) {
    const from = bracket
    const before = text.slice(0, from).replace(/!$/, '')
    const after = text.slice(from + 1)
    return closeAll(before + after, open.map((mark) => (mark.end > from ? { ...mark, end: mark.end - 1 } : mark)))
  }
  return closeAll(text, open)
}

function toggle(
  open: { mark: string; end: number }[],
  mark: string,
  start: number,
  end: number,
  before: string | undefined,
  after: string | undefined,
) {
  const canClose = start > 0 && !isSpace(before)
  const last = open.at(-1)
  if (canClose && last && last.mark === mark && !(mark.startsWith('_') && isWord(after))) {
    open.pop()
    return
  }
  // "***both***" may close two marks at once.
  if (canClose && mark.length === 3 && open.length >= 2) {
    open.splice(-2)
    return
  }
  const canOpen = (after === undefined || !isSpace(after)) && !(mark.startsWith('_') && isWord(before))
  if (canOpen) open.push({ mark, end })
}

/** Closes what is open, inside out. A mark with nothing after it is taken away instead. */
function closeAll(text: string, open: { mark: string; end: number }[]): string {
  let healed = text
  const rest = [...open]
  while (rest.length > 0) {
    const last = rest.at(-1)
    if (!last || healed.slice(last.end).trim() !== '') break
    healed = healed.slice(0, last.end - last.mark.length)
    rest.pop()
  }
  if (rest.length === 0) return healed
  healed = healed.trimEnd()
  // Half of a closing mark is already there ("**bold*"): only the rest is added.
  const inner = rest.at(-1)
  if (inner && inner.mark.length === 2 && healed.endsWith(inner.mark.charAt(0)) && healed.length > inner.end && healed.at(-2) !== inner.mark.charAt(0)) {
    healed = healed.slice(0, -1)
  }
  return healed + rest.reverse().map(({ mark }) => mark).join('')
}
