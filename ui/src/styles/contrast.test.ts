import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'

const css = readFileSync(new URL('./tokens.css', import.meta.url), 'utf8')

/** The opaque colours a theme gives to the tokens. */
function colours(selector: string): Record<string, string> {
  const blocks = css.split('}').filter((block) => block.split('{').at(-2)?.trim().split('\n').at(-1)?.trim() === selector)
  return Object.fromEntries(blocks.flatMap((block) => [...block.matchAll(/--([\w-]+):\s*(#[0-9a-f]{6});/g)].map(([, name, value]) => [name, value])))
}

function luminance(colour: string): number {
  const [red = 0, green = 0, blue = 0] = [1, 3, 5].map((at) => {
    const part = parseInt(colour.slice(at, at + 2), 16) / 255
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}

function contrast(one: string, other: string): number {
  const [dark = 0, light = 0] = [luminance(one), luminance(other)].sort((a, b) => a - b)
  return (light + 0.05) / (dark + 0.05)
}

const light = colours(':root')
const themes = { light, dark: { ...light, ...colours(":root[data-theme='dark']") } }
const grounds = ['surface', 'surface-raised', 'surface-sunken', 'surface-side']
const syntax = Object.keys(light).filter((name) => name.startsWith('syntax-'))

describe.each(Object.entries(themes))('%s', (_, theme) => {
  const of = (name: string) => theme[name] ?? 'absent'
  it.each(grounds)('body text on %s is at least 7 to 1', (ground) => expect(contrast(of('text'), of(ground))).toBeGreaterThanOrEqual(7))
  it.each(grounds)('muted text and statuses on %s are at least 4.5 to 1', (ground) => {
    for (const name of ['text-muted', 'accent', 'status-calm', 'status-near', 'status-critical', 'status-offloaded']) {
      expect(contrast(of(name), of(ground)), `${name} on ${ground}`).toBeGreaterThanOrEqual(4.5)
    }
  })
  it('code in colour on its ground is at least 4.5 to 1', () => {
    expect(syntax.length).toBeGreaterThan(5)
    for (const name of syntax) expect(contrast(of(name), of('surface-sunken')), name).toBeGreaterThanOrEqual(4.5)
  })
  it('words on the accent are at least 4.5 to 1', () => expect(contrast(of('on-accent'), of('accent'))).toBeGreaterThanOrEqual(4.5))
})
