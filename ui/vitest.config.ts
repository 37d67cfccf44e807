import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  plugins: [svelte()],
  // The limit finds hangs; it says nothing about speed, which a busy machine would fail.
  test: { include: ['src/**/*.test.ts'], testTimeout: 60_000 },
})
