import { readdirSync } from 'node:fs'
import svelte from 'eslint-plugin-svelte'
import globals from 'globals'
import ts from 'typescript-eslint'
import svelteConfig from './svelte.config.js'

const features = readdirSync(new URL('./src/features', import.meta.url))

/** Forbids imports whose path matches one of the patterns, with the reason shown. */
const forbid = (files, rules, ignores = []) => ({
  files,
  ignores,
  rules: {
    'no-restricted-imports': [
      'error',
      { patterns: rules.map(([regex, message]) => ({ regex, message })) },
    ],
  },
})

const generated = ['bindings\\.gen', 'only ipc/backend.ts (types) and ipc/tauriBackend.ts (calls) import the generated bindings']
const tauri = ['^@tauri-apps/', 'only ipc/tauriBackend.ts talks to the shell']

export default ts.config(
  { ignores: ['dist/', 'node_modules/', 'src/ipc/bindings.gen.ts'] },
  ...ts.configs.recommended,
  ...svelte.configs.recommended,
  {
    languageOptions: { globals: { ...globals.browser } },
    rules: {
      'no-console': ['error', { allow: ['error'] }],
      eqeqeq: 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      'svelte/no-at-html-tags': 'error',
      'svelte/require-each-key': 'error',
      // The window has one page: there is no router whose addresses could be resolved.
      'svelte/no-navigation-without-resolve': 'off',
    },
  },
  {
    files: ['**/*.svelte', '**/*.svelte.ts'],
    languageOptions: { parserOptions: { parser: ts.parser, svelteConfig } },
  },
  { files: ['*.config.*', 'scripts/**'], languageOptions: { globals: { ...globals.node } } },
  {
    files: ['scripts/**'],
    rules: { 'no-console': 'off' },
  },
  // The arrows: primitives ← features ← views, and ipc below all of them.
  forbid(['src/primitives/**'], [
    ['/(features|views|ipc)/', 'a primitive knows no feature, no view and no transport'],
    generated,
    tauri,
  ]),
  ...features.map((name) =>
    forbid([`src/features/${name}/**`], [
      ['/views/', 'a feature knows no view'],
      [`\\.\\./(${features.filter((other) => other !== name).join('|')})(/|$)`, 'a feature never imports another: a view composes them'],
      ['/(tauriBackend|fakeBackend|fake/)', 'features know the Backend interface alone'],
      generated,
      tauri,
    ]),
  ),
  forbid(['src/views/**'], [
    ['/(tauriBackend|fakeBackend|fake/)', 'views know the Backend interface alone'],
    generated,
    tauri,
  ]),
  forbid(
    ['src/ipc/**'],
    [
      ['/(features|views|primitives)/', 'the transport knows no part of the interface'],
      generated,
      tauri,
    ],
    ['src/ipc/backend.ts', 'src/ipc/tauriBackend.ts'],
  ),
)
