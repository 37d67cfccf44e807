// Raw colours and pixel sizes belong in src/styles/tokens.css alone: everything else uses tokens by meaning.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const home = join('src', 'styles', 'tokens.css')
const raw = [
  [/:[^;]*#[0-9a-fA-F]{3,8}\b/, 'raw colour'],
  [/\b(?:rgba?|hsla?|oklch|lab|lch)\(/, 'raw colour'],
  [/\b\d*\.?\d+px\b/, 'raw pixel size'],
]

/** The lines of a file that can hold styles: a whole stylesheet, or what stands between style tags. */
function styleLines(path, text) {
  const lines = text.split('\n').map((line, index) => [index + 1, line])
  if (path.endsWith('.css')) return lines
  const start = lines.findIndex(([, line]) => line.startsWith('<style'))
  return start < 0 ? [] : lines.slice(start)
}

const found = []
for (const entry of readdirSync('src', { recursive: true })) {
  const path = join('src', entry)
  if (path === home || !/\.(css|svelte)$/.test(path)) continue
  const text = readFileSync(path, 'utf8')
  for (const [number, line] of styleLines(path, text)) {
    for (const [pattern, what] of raw) {
      if (pattern.test(line)) found.push(`${path}:${number}: ${what}: ${line.trim()}`)
    }
  }
  // Attributes in the markup may not carry sizes or colours either.
  if (path.endsWith('.svelte')) {
    text.split('\n').forEach((line, index) => {
      if (/style(:[\w-]+)?="[^"]*(\d+px|#[0-9a-f]{3,8}|rgba?\()/i.test(line)) {
        found.push(`${path}:${index + 1}: raw value in a style attribute: ${line.trim()}`)
      }
    })
  }
}

if (found.length > 0) {
  console.log(found.join('\n'))
  console.log(`\n${found.length} raw values outside ${home}`)
  process.exit(1)
}
console.log('tokens: no raw colour or pixel size outside tokens.css')
