import { expect, it } from 'vitest'
import { measuredFacts, measuringWords, reachedSentence } from './words'

const calibration = { modelName: 'Qwen3 8B', bandwidthBytesPerSec: 94e9, decodeTokensPerSec: 14.2, prefillTokensPerSec: 231, reachedRatio: 0.76 }

it('says what was measured in words and numbers', () => {
  expect(measuredFacts(calibration)).toBe('Memory 94 GB/s · Qwen3 8B reads 231\u00a0tok/s, writes 14\u00a0tok/s')
  expect(reachedSentence(calibration)).toBe('Writing reaches 76 % of what the memory could give.')
  expect(reachedSentence({ ...calibration, reachedRatio: 1.4 })).toContain('caches')
  expect(measuringWords(0)).toBe('Measuring')
  expect(measuringWords(4)).toBe('Measuring · 4 s')
})
