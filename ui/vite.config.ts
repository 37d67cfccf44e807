import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [svelte()],
  // The shell serves the files from a custom scheme: relative addresses work there and in `vite preview`.
  base: './',
  server: { port: 1420, strictPort: true },
  preview: { port: 1430, strictPort: true },
  build: {
    target: ['safari16', 'chrome110'],
    // No inlined fonts or images: the shell's content security policy does not allow data: addresses.
    assetsInlineLimit: 0,
  },
})
