// One browser and one server of the built interface, shared by the tests of a file.

import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core'
import { preview, type PreviewServer } from 'vite'

const root = fileURLToPath(new URL('../../ui', import.meta.url))

export const sizes = {
  panel: { width: 400, height: 620 },
  narrow: { width: 360, height: 480 },
  window: { width: 1040, height: 720 },
  small: { width: 720, height: 480 },
} as const

export type Size = keyof typeof sizes

function chromiumPath(): string {
  return process.env.CHROMIUM ?? execFileSync('which', ['chromium']).toString().trim()
}

export class Stage {
  readonly #server: PreviewServer
  readonly #browser: Browser
  readonly #address: string

  private constructor(server: PreviewServer, browser: Browser, address: string) {
    this.#server = server
    this.#browser = browser
    this.#address = address
  }

  static async open(): Promise<Stage> {
    const server = await preview({ root, preview: { port: 0, strictPort: false, host: '127.0.0.1' }, logLevel: 'error' })
    const address = server.httpServer.address()
    if (address === null || typeof address === 'string') throw new Error('the preview server has no port')
    const browser = await chromium.launch({ executablePath: chromiumPath(), args: ['--no-sandbox', '--force-color-profile=srgb'] })
    return new Stage(server, browser, `http://127.0.0.1:${address.port}`)
  }

  async close() {
    await this.#browser.close()
    await this.#server.close()
  }

  /** A page with a scenario of the fake backend. Errors in the page fail the test that opened it. */
  async show(scenario: string, size: Size, more: { theme?: 'light' | 'dark'; scale?: number } = {}): Promise<Scene> {
    const context = await this.#browser.newContext({ viewport: sizes[size], deviceScaleFactor: more.scale ?? 1, colorScheme: more.theme ?? 'light', reducedMotion: 'no-preference' })
    const page = await context.newPage()
    const errors: string[] = []
    page.on('pageerror', (error) => errors.push(error.message))
    page.on('console', (message) => {
      if (message.type() === 'error') errors.push(message.text())
    })
    await page.goto(`${this.#address}/?fake=${scenario}`)
    await page.getByTestId('composer').waitFor()
    await page.evaluate(() => document.fonts.ready)
    return new Scene(context, page, errors)
  }
}

export class Scene {
  readonly #context: BrowserContext
  readonly page: Page
  readonly errors: string[]

  constructor(context: BrowserContext, page: Page, errors: string[]) {
    this.#context = context
    this.page = page
    this.errors = errors
  }

  id(testid: string) {
    return this.page.getByTestId(testid)
  }

  async ask(text: string) {
    await this.id('composer').fill(text)
    await this.id('send').click()
  }

  async drag(type: 'enter' | 'leave' | 'drop', ...paths: string[]) {
    await this.page.evaluate((detail) => window.dispatchEvent(new CustomEvent('fake-drag', { detail })), { type, paths })
  }

  /** What the page asked of the backend, by name. */
  calls(name: string): Promise<unknown[]> {
    return this.page.evaluate((wanted) => {
      const { tidegateFake } = window as unknown as { tidegateFake: { calls: { name: string; value: unknown }[] } }
      return tidegateFake.calls.filter((call) => call.name === wanted).map((call) => call.value)
    }, name)
  }

  async close() {
    await this.#context.close()
    if (this.errors.length > 0) throw new Error(`the page reported errors:\n${this.errors.join('\n')}`)
  }
}
