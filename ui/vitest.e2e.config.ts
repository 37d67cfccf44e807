import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url))

/** Tests of the built interface in a browser, over the fake backend. They live beside the other system tests. */
export default defineConfig({
  server: { fs: { allow: [at('..')] } },
  resolve: {
    // tests/ui has no packages of its own.
    alias: { 'playwright-core': at('./node_modules/playwright-core/index.mjs'), vite: at('./node_modules/vite/dist/node/index.js') },
  },
  test: {
    dir: at('../tests/ui'),
    include: [at('../tests/ui/**/*.e2e.ts')],
    globals: true,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    fileParallelism: false,
  },
})
