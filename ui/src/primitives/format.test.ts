import { expect, it } from 'vitest'
import { bandwidth, contextLen, fileSize, megabytesPerSec, memory, memoryGb, parameters, shortPath, tokensPerSec } from './format'
import { place } from './placement'
import { sparkline } from './sparkline'

it('counts memory in 2³⁰ and files in 10⁹', () => {
  expect(memory(24 * 2 ** 30)).toBe('24 GB')
  expect(memory(10.4 * 2 ** 30)).toBe('10.4 GB')
  expect(memory(0.3 * 2 ** 30)).toBe('307 MB')
  expect(memoryGb(21.6 * 2 ** 30)).toBe('21.6')
  expect(fileSize(5.03e9)).toBe('5.0 GB')
  expect(fileSize(491e6)).toBe('491 MB')
  expect(fileSize(999.9e6)).toBe('1.0 GB')
  expect(fileSize(12)).toBe('12 bytes')
})

it('keeps rates and lengths short', () => {
  expect(megabytesPerSec(0)).toBe('0')
  expect(megabytesPerSec(3.2 * 2 ** 20)).toBe('3.2')
  expect(bandwidth(49.4e9)).toBe('49 GB/s')
  expect(tokensPerSec(3.44)).toBe('3.4')
  expect(tokensPerSec(51.7)).toBe('52')
  expect(contextLen(8192)).toBe('8k')
  expect(contextLen(4000)).toBe('4,000')
  expect(contextLen(128_000)).toBe('125k')
  expect(contextLen(100_001)).toBe('100k')
  expect(parameters(14.8e9)).toBe('14.8B')
  expect(parameters(494e6)).toBe('494M')
  expect(shortPath('/Users/kim/Models')).toBe('~/Models')
})

it('leaves gaps in a line where nothing is known', () => {
  const { line } = sparkline([0, 1, null, 1, 1], 4, 1)
  expect(line).toBe('M0.0 29.0L45.0 1.0M135.0 1.0L180.0 1.0')
})

it('puts a surface on the side with room, inside the window', () => {
  const view = { width: 400, height: 620 }
  const low = place({ left: 10, right: 80, top: 580, bottom: 606 }, { width: 320, height: 300 }, view, 'start')
  expect(low).toMatchObject({ left: 10, top: 580 - 6 - 300 })
  const right = place({ left: 350, right: 390, top: 10, bottom: 30 }, { width: 320, height: 300 }, view, 'start')
  expect(right).toMatchObject({ left: 72, top: 36 })
})
