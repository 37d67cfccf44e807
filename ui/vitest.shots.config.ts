import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'
import base from './vitest.e2e.config.ts'

export default defineConfig({
  ...base,
  test: { ...base.test, include: [fileURLToPath(new URL('../tests/ui/**/*.shots.ts', import.meta.url))] },
})
