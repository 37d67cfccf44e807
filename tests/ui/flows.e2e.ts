// What people do with the window, in a browser over the fake backend.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { Stage, type Scene, type Size } from './browser'

let stage: Stage
let scene: Scene

beforeAll(async () => {
  stage = await Stage.open()
})
afterAll(() => stage.close())
afterEach(() => scene.close())

async function show(fake: string, size: Size = 'window', more: Parameters<Stage['show']>[2] = {}) {
  scene = await stage.show(fake, size, more)
  return scene
}

const question = "Why can't I hold a MutexGuard across .await here?"

describe('an answer', () => {
  test('streams, and says where it was made and why', async () => {
    const { page } = await show('ready')
    await scene.ask(question)
    expect(await scene.id('message-user').innerText()).toBe(question)
    expect(await scene.id('composer').inputValue()).toBe('')
    await scene.id('stop').waitFor()
    await scene.id('send').waitFor()
    expect(await scene.id('message-assistant').innerText()).toContain('confidentiality')
    expect((await scene.id('place-line').textContent())?.replace(/\s+/g, ' ')).toMatch(/^ ?Here · 44 tok\/s · fits with 2.4 GB to spare · why ?$/)
    await page.getByRole('button', { name: 'Why here' }).click()
    expect(await scene.id('decision-card').innerText()).toContain('Free memory')
    await page.keyboard.press('Escape')
    await scene.id('decision-card').waitFor({ state: 'detached' })
    expect(await scene.id('conversation-row').first().innerText()).toContain('MutexGuard')
  })

  test('stops with the button, and with Esc; what was written stays', async () => {
    const { page } = await show('slow')
    for (const stop of [() => scene.id('stop').click(), () => page.keyboard.press('Escape')]) {
      await scene.ask(question)
      const answer = scene.id('message-assistant').last()
      await answer.getByText('is not').waitFor()
      await stop()
      await scene.id('send').waitFor()
      expect(await answer.getAttribute('data-state')).toBe('stopped')
      expect(await answer.innerText()).toContain('The guard of')
      expect(await answer.innerText()).toContain('stopped')
    }
    expect(await scene.calls('stopReply')).toHaveLength(2)
  })

  test('that is cut off by its node keeps what came, and goes on here', async () => {
    await show('node-gone')
    await scene.ask(question)
    await scene.id('answer-here').waitFor()
    await scene.id('composer').fill('typed meanwhile')
    const kept = await scene.id('message-assistant').innerText()
    expect(kept).toContain('Take the lock after the wait')
    expect(kept).toContain('studio went away')
    await scene.id('answer-here').click()
    await scene.id('send').waitFor()
    await scene.id('message-assistant').last().getByText('confidentiality').waitFor()
    expect(await scene.calls('sendMessage')).toMatchObject([{ place: 'policy' }, { place: 'here', text: null }])
    expect(await scene.id('composer').inputValue()).toBe('typed meanwhile')
    await scene.page.getByText('Earlier answer').waitFor()
  })

  test('that was never accepted gives the question back', async () => {
    await show('node-refused')
    await scene.ask(question)
    await scene.id('notice').waitFor()
    expect(await scene.id('composer').inputValue()).toBe(question)
    expect(await scene.id('message-user').count()).toBe(0)
    await scene.id('answer-here').click()
    await scene.id('message-assistant').getByText('confidentiality').waitFor()
  })

  test('goes on in memory while the disk is full', async () => {
    await show('disk-full')
    await scene.ask(question)
    await scene.id('notice').getByText('The disk is full').waitFor()
    await scene.id('message-assistant').getByText('two years').waitFor()
    await scene.id('send').waitFor()
  })

  test('goes on while another chat is in view', async () => {
    await show('slow')
    await scene.ask(question)
    await scene.id('message-assistant').getByText('is not').waitFor()
    await scene.id('conversation-row').filter({ hasText: 'Swap rate' }).click()
    await scene.id('message-assistant').getByText('Three things follow').waitFor()
    await scene.id('send').waitFor()
    await scene.id('conversation-row').first().click()
    await scene.id('stop').waitFor()
    await scene.id('message-assistant').getByText('The guard of').waitFor()
  })

  test('can be copied, whole and by code block; links open outside', async () => {
    const { page } = await show('ready')
    await scene.id('conversation-row').filter({ hasText: 'Swap rate' }).click()
    await page.getByRole('button', { name: 'Copy code' }).click()
    await scene.id('message-assistant').hover()
    await page.getByRole('button', { name: 'Copy answer' }).click()
    const [code, whole] = (await scene.calls('copyText')) as string[]
    expect(code).toMatch(/^# pages in and out/)
    expect(whole).toMatch(/^The rate\./)
    await page.evaluate(() => (window.open = () => null))
    await page.getByRole('link', { name: 'the manual' }).click()
    expect(await scene.calls('openUrl')).toEqual(['https://developer.apple.com/documentation/'])
  })
})

describe('an answer that moves', () => {
  test('has a seam at the very letter; it opens the reason and the numbers, and gives the focus back', async () => {
    const { page } = await show('move')
    await scene.ask(question)
    await scene.id('seam').waitFor()
    await scene.id('send').waitFor()
    const [before, after] = await scene.id('seam').evaluate((seam) => {
      const around = document.createRange()
      const text = (from: [Node, number], to: [Node, number]) => {
        around.setStart(...from)
        around.setEnd(...to)
        return around.toString()
      }
      const paragraph = seam.closest('p')!
      const at = [...paragraph.childNodes].indexOf(seam)
      return [text([paragraph, 0], [paragraph, at]), text([paragraph, at + 1], [paragraph, paragraph.childNodes.length])]
    })
    expect(before).toMatch(/may be resumed on another$/)
    expect(after).toMatch(/^ thread, so everything alive/)
    expect(await scene.id('note').innerText()).toContain('models that nobody uses were unloaded')
    expect((await scene.id('place-line').textContent())?.replace(/\s+/g, ' ')).toMatch(/^ ?Here, then studio · here swaps in 40.0 MB\/s · why ?$/)

    await scene.id('seam').focus()
    await page.keyboard.press('Enter')
    const card = await scene.id('decision-card').innerText()
    for (const part of ['Moved to studio after 31 tokens: swap', '40.0 MB/s', '4.0 MB/s', 'not reachable', 'Would stay here with swap in up to 4.0 MB/s.', 'by its tokens: the same as if it had not moved', '84 ms']) {
      expect(card).toContain(part)
    }
    await page.keyboard.press('Escape')
    expect(await page.evaluate(() => document.activeElement?.getAttribute('data-testid'))).toBe('seam')
  })

  test('in the middle of code has its seam after it, and the code is whole', async () => {
    await show('move-back', 'panel')
    await scene.ask(question)
    await scene.id('send').waitFor()
    const back = scene.id('seam').nth(1)
    expect(await back.innerText()).toBe('moved back here: studio failed')
    expect(await back.evaluate((seam) => seam.previousElementSibling?.querySelector('pre')?.textContent)).toContain('self.map.lock().unwrap().insert(url, page);')
    await back.click()
    expect(await scene.id('handover').innerText()).toMatch(/studio failed\s+studio closed the connection\s+Handed over\s+by its text/)
  })

  test('does so where the person wants it', async () => {
    await show('slow')
    await scene.ask(question)
    await scene.id('message-assistant').getByText('is not').waitFor()
    await scene.id('move-answer').click()
    expect(await scene.id('move-place').nth(1).getAttribute('aria-disabled')).toBe('true')
    await scene.id('move-place').first().click()
    await scene.id('seam').waitFor()
    expect(await scene.calls('moveAnswer')).toMatchObject([{ placeId: 'studio' }])
    expect((await scene.id('place-line').textContent())?.replace(/\s+/g, ' ')).toContain('Here, then studio · you chose it')
    await scene.id('stays-local').click()
    await scene.id('move-answer').waitFor({ state: 'detached' })
  })
})

describe('the history', () => {
  test('is browsed, narrowed, and explains each decision', async () => {
    const { page } = await show('ready')
    await scene.id('open-history').click()
    const entries = scene.id('history-entry')
    await entries.first().waitFor()
    expect(await entries.count()).toBe(100)
    expect((await entries.first().innerText()).replace(/\s+/g, ' ')).toBe('15:03 On studio · here swaps in 40.0 MB/s Moved · Borrowing across an await · Qwen3 8B')
    await scene.id('history-more').click()
    await scene.id('history-more').waitFor({ state: 'detached' })
    expect(await entries.count()).toBe(130)
    await scene.id('history-kind').selectOption('move')
    expect(await entries.count()).toBe(2)
    await scene.id('history-place').selectOption('here')
    expect(await entries.count()).toBe(1)
    await scene.id('history-kind').selectOption('stay')
    await entries.click()
    expect(await scene.id('decision-card').innerText()).toContain('Would move with a node that takes over running answers.')
    await scene.id('history-open-chat').click()
    await scene.id('message-assistant').waitFor()
    expect(await page.getByRole('heading', { name: 'awk one-liner' }).count()).toBe(1)
  })

  test('grows while it is looked at', async () => {
    const { page } = await show('move')
    await scene.id('open-history').click()
    await scene.id('history-entry').first().waitFor()
    // Somebody else's answer, in another chat.
    await page.evaluate(() => {
      const { tidegateFake } = window as unknown as { tidegateFake: { sendMessage: (request: object, onEvent: () => void) => void } }
      tidegateFake.sendMessage({ conversationId: null, text: 'Why?', model: null, place: 'policy' }, () => {})
    })
    await page.waitForFunction(() => document.querySelectorAll('[data-testid=history-entry]').length === 102)
    expect(await scene.id('history-entry').first().innerText()).toContain('Moved · Why?')
  })

  test('is cleared, once it is sure', async () => {
    const { page } = await show('ready', 'panel')
    await scene.id('open-chats').click()
    await scene.id('open-history').click()
    await scene.id('history-clear').click()
    await page.keyboard.press('Escape')
    expect(await scene.calls('clearDecisions')).toEqual([])
    await scene.id('history-clear').click()
    await scene.id('history-clear-confirm').click()
    await scene.id('history-empty').waitFor()
    expect(await scene.id('history-entry').count()).toBe(0)
    expect(await scene.calls('clearDecisions')).toHaveLength(1)
  })
})

describe('what may leave', () => {
  test('depends on whose machine a node is', async () => {
    await show('ready')
    await scene.id('open-nodes').click()
    const studio = scene.id('node-row').first()
    expect(await studio.getByTestId('trust-own').getAttribute('aria-checked')).toBe('true')
    await studio.getByTestId('trust-rented').click()
    await studio.getByText('its owner could read what is sent there').waitFor()
    expect(await scene.calls('setNodeTrust')).toEqual([{ id: 'studio', trust: 'rented' }])
    await scene.id('least-trust-own').click()
    await scene.page.getByText('to your own machines only').waitFor()
    expect(await scene.calls('saveSettings')).toMatchObject([{ leastTrust: 'own' }])
  })

  test('nothing does of a model that stays', async () => {
    await show('ready')
    await scene.id('model-picker').click()
    await scene.id('model-stays').check()
    expect(await scene.calls('saveSettings')).toMatchObject([{ modelsThatStay: ['qwen3-8b'] }])
    await scene.page.keyboard.press('Escape')
    expect(await scene.id('offload-remote').getAttribute('aria-disabled')).toBe('true')
    expect(await scene.id('offload-remote').getAttribute('title')).toBe('This model stays on this Mac')
  })
})

describe('measuring this Mac', () => {
  test('is offered once, runs, and says what was found', async () => {
    const { page } = await show('first')
    await scene.id('calibration-measure').click()
    await scene.id('calibration-offer').getByText('Measuring this Mac').waitFor()
    await scene.id('calibration-offer').getByText('Memory 94 GB/s · Qwen3 8B reads 231 tok/s, writes 14 tok/s').waitFor()
    await scene.id('calibration-done').click()
    await scene.id('calibration-offer').waitFor({ state: 'detached' })
    expect(await scene.calls('calibrate')).toHaveLength(1)
    await scene.id('open-settings').click()
    await scene.id('calibration-field').getByText('Memory 94 GB/s').waitFor()
    await scene.id('calibration-again').click()
    await page.getByText('Measure again').waitFor()
    expect(await scene.calls('calibrate')).toHaveLength(2)
  })

  test('is not offered again after "Not now", and Settings still has it', async () => {
    await show('first')
    await scene.id('calibration-decline').click()
    await scene.id('calibration-offer').waitFor({ state: 'detached' })
    expect(await scene.calls('saveSettings')).toMatchObject([{ offerCalibration: false }])
    await scene.id('open-settings').click()
    await scene.id('calibration-field').getByText('Not measured yet').waitFor()
    await scene.id('calibration-again').click()
    await scene.id('calibration-field').getByText('Memory 94 GB/s').waitFor()
  })

  test('that fails says why and what to do, and can be tried again', async () => {
    await show('measure-fails')
    await scene.id('new-chat').click()
    await scene.id('calibration-measure').click()
    await scene.id('calibration-offer').getByText('Close programs that take memory').waitFor()
    await scene.id('calibration-measure').click()
    await scene.id('calibration-done').waitFor()
  })

  test.each(['no-model', 'ready'])('is not offered where there is nothing to gain: %s', async (fake) => {
    await show(fake)
    await scene.page.waitForTimeout(100)
    expect(await scene.id('calibration-offer').count()).toBe(0)
  })
})

describe('a long answer', () => {
  test('of ten thousand letters streams without a jump', async () => {
    const { page } = await show('long', 'panel')
    await scene.ask(question)
    // Watches every frame: a settled block must keep its element, its place in the answer and its height.
    await page.evaluate(() => {
      type Seen = { element: Element; height: number; top: number }
      const seen: Seen[] = []
      const jumps: string[] = []
      Object.assign(window, { jumps, frames: 0 })
      const watch = () => {
        const markdown = document.querySelector('.markdown')
        const blocks = markdown ? [...markdown.children] : []
        const origin = markdown?.getBoundingClientRect().top ?? 0
        blocks.slice(0, -2).forEach((element, index) => {
          const { height, top } = element.getBoundingClientRect()
          const now = { element, height, top: top - origin }
          const was = seen[index]
          if (was && was.element !== element) jumps.push(`block ${index} was made anew`)
          if (was && (Math.abs(was.height - height) > 0.6 || Math.abs(was.top - now.top) > 0.6)) jumps.push(`block ${index} moved`)
          seen[index] = now
        })
        Object.assign(window, { frames: (window as unknown as { frames: number }).frames + 1 })
        requestAnimationFrame(watch)
      }
      requestAnimationFrame(watch)
    })
    await scene.id('send').waitFor()
    const { jumps, frames, letters, atEnd } = await page.evaluate(() => {
      const view = document.querySelector('[role=log]')!
      const { jumps, frames } = window as unknown as { jumps: string[]; frames: number }
      return { jumps, frames, letters: document.querySelector('.markdown')!.textContent!.length, atEnd: view.scrollHeight - view.scrollTop - view.clientHeight }
    })
    expect(letters).toBeGreaterThan(9000)
    expect(frames).toBeGreaterThan(1)
    expect(jumps).toEqual([])
    expect(atEnd).toBeLessThan(2)
  })

  test('leaves a reader who scrolled up where they are, and offers the way back', async () => {
    const { page } = await show('long', 'panel')
    await scene.ask(question)
    await scene.id('message-assistant').getByText('Part 2').first().waitFor()
    await page.mouse.move(200, 200)
    await page.mouse.wheel(0, -400)
    await scene.id('latest').waitFor()
    const top = () => page.evaluate(() => document.querySelector('[role=log]')!.scrollTop)
    const before = await top()
    await scene.id('message-assistant').getByText('Part 7').first().waitFor()
    expect(await top()).toBe(before)
    await scene.id('latest').click()
    await scene.id('latest').waitFor({ state: 'detached' })
    await scene.id('send').waitFor()
    expect(await page.evaluate(() => { const view = document.querySelector('[role=log]')!; return view.scrollHeight - view.scrollTop - view.clientHeight })).toBeLessThan(2)
  })

  test('is spoken sentence by sentence', async () => {
    const { page } = await show('slow')
    await page.evaluate(() => {
      const said: string[] = []
      Object.assign(window, { said })
      new MutationObserver(() => said.push(document.querySelector('[data-testid=spoken]')?.textContent ?? '')).observe(document.body, { subtree: true, characterData: true, childList: true })
    })
    await scene.ask(question)
    await scene.id('message-assistant').getByText('for as short').waitFor()
    const said = await page.evaluate(() => [...new Set((window as unknown as { said: string[] }).said)].filter((each) => each !== ''))
    expect(said[0]).toBe('The guard of std::sync::Mutex is not Send.')
    expect(said.every((each) => /[.:!?]$|code$/.test(each))).toBe(true)
  })
})

describe('what is typed', () => {
  test('is saved while typing, kept by each chat, and comes back', async () => {
    await show('ready')
    await scene.id('composer').fill('half a thought')
    await scene.id('conversation-row').nth(1).click()
    await scene.id('message-assistant').waitFor()
    expect(await scene.id('composer').inputValue()).toBe('')
    await scene.id('composer').fill('another')
    await scene.id('new-chat').click()
    expect(await scene.id('composer').inputValue()).toBe('half a thought')
    await scene.id('conversation-row').nth(1).click()
    await scene.id('message-assistant').waitFor()
    expect(await scene.id('composer').inputValue()).toBe('another')
    expect(await scene.calls('saveDraft')).toEqual([
      { conversationId: null, text: 'half a thought' },
      { conversationId: 2, text: 'another' },
    ])
  })

  test('⇧Enter breaks the line, Enter sends, ↑ brings the last question back, the field ends at eight lines', async () => {
    const { page } = await show('ready', 'panel')
    const composer = scene.id('composer')
    await composer.fill('one')
    await page.keyboard.press('Shift+Enter')
    await page.keyboard.type('two')
    expect(await composer.inputValue()).toBe('one\ntwo')
    await composer.fill(Array.from({ length: 30 }, (_, line) => `line ${line}`).join('\n'))
    expect((await composer.boundingBox())!.height).toBe(176)
    await composer.fill('short')
    expect((await composer.boundingBox())!.height).toBe(22)
    await page.keyboard.press('Enter')
    await scene.id('send').waitFor()
    expect(await composer.inputValue()).toBe('')
    await composer.press('ArrowUp')
    expect(await composer.inputValue()).toBe('short')
  })
})

describe('a dropped file', () => {
  test('shows its footprint while it hovers, and is added with one button', async () => {
    await show('drop-tight')
    await scene.drag('enter', '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf')
    await scene.id('drop-overlay').getByText('10.4 GB needed, 11.3 GB free').waitFor()
    await scene.drag('leave')
    await scene.id('drop-overlay').waitFor({ state: 'detached' })
    await scene.drag('enter', '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf')
    await scene.drag('drop', '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf')
    expect(await scene.id('verdict-title').innerText()).toBe('Tight')
    await scene.id('add-copy').click()
    await scene.id('verdict-add').click()
    await scene.id('verdict-card').waitFor({ state: 'detached' })
    expect(await scene.calls('addModel')).toEqual([{ path: '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf', how: 'copy' }])
    expect(await scene.id('model-picker').innerText()).toContain('Qwen3 14B')
  })

  test.each([
    ['drop-well', 'Runs well'],
    ['drop-too-big', 'Too big here'],
    ['drop-broken', 'The file is cut off'],
  ])('%s: %s', async (fake, title) => {
    await show(fake, 'panel')
    await scene.drag('drop', '/a/model.gguf')
    expect(await scene.id('verdict-title').innerText()).toBe(title)
    await scene.page.keyboard.press('Escape')
    await scene.id('verdict-card').waitFor({ state: 'detached' })
  })

  test('among several has its own line', async () => {
    await show('drop-several')
    await scene.drag('drop', '/a/1.gguf', '/a/2.gguf', '/a/3.gguf', '/a/4.pdf')
    await scene.id('verdict-card').waitFor()
    expect(await scene.id('verdict-row').count()).toBe(4)
    await scene.id('verdict-add').first().click()
    await scene.id('verdict-card').getByText('Added').waitFor()
  })
})

describe('offload', () => {
  test('Remote without a node leads to adding one, and is switched on by it', async () => {
    await show('no-node')
    await scene.id('offload-remote').click()
    await scene.id('node-url').fill('not an address!')
    await scene.id('node-add').click()
    await scene.page.getByText('is not an address').waitFor()
    await scene.id('node-url').fill('studio.local:8080')
    await scene.id('node-key').fill('secret')
    await scene.id('node-add').click()
    await scene.id('node-row').waitFor()
    expect(await scene.id('node-row').getAttribute('data-state')).toBe('ready')
    await scene.page.keyboard.press('Escape')
    expect(await scene.id('offload-remote').getAttribute('aria-checked')).toBe('true')
  })

  test('a chat that stays here cannot be sent away', async () => {
    await show('ready')
    await scene.id('conversation-row').filter({ hasText: 'Contract' }).click()
    await scene.id('message-assistant').waitFor()
    expect(await scene.id('offload-remote').getAttribute('aria-disabled')).toBe('true')
    await scene.id('offload-remote').click({ force: true })
    expect(await scene.calls('saveSettings')).toEqual([])
  })
})

describe('chats', () => {
  test('are renamed and deleted', async () => {
    const { page } = await show('ready')
    const row = scene.id('conversation-row').nth(1)
    await row.hover()
    await row.getByTestId('conversation-rename').click()
    await scene.id('conversation-title').fill('Rates')
    await page.keyboard.press('Enter')
    await scene.id('conversation-row').filter({ hasText: 'Rates' }).click()
    await scene.id('message-assistant').waitFor()
    await scene.id('conversation-row').filter({ hasText: 'Rates' }).hover()
    await scene.id('conversation-row').filter({ hasText: 'Rates' }).getByTestId('conversation-delete').click()
    await scene.id('conversation-delete-confirm').click()
    await page.waitForFunction(() => document.querySelectorAll('[data-testid=conversation-row]').length === 4)
    expect(await scene.id('message-user').count()).toBe(0)
  })
})

describe('the keyboard', () => {
  test('reaches everything', async () => {
    const { page } = await show('ready', 'panel')
    await page.keyboard.press('Meta+1')
    await scene.id('message-assistant').waitFor()
    await page.keyboard.press('Meta+i')
    await scene.id('decision-card').waitFor()
    await page.keyboard.press('Meta+i')
    await scene.id('decision-card').waitFor({ state: 'detached' })
    await page.keyboard.press('Meta+n')
    expect(await scene.id('message-user').count()).toBe(0)
    await page.keyboard.press('Meta+l')
    await scene.id('model-list').waitFor()
    await page.keyboard.press('ArrowDown')
    await page.keyboard.press('Enter')
    expect(await scene.id('model-picker').innerText()).toContain('Coder')
    await page.keyboard.press('Meta+Shift+L')
    expect(await scene.id('offload-remote').getAttribute('aria-checked')).toBe('true')
    await page.keyboard.press('Meta+,')
    await scene.id('theme-dark').click()
    expect(await page.evaluate(() => document.documentElement.dataset.theme)).toBe('dark')
    await page.keyboard.press('Escape')
    await scene.id('composer').waitFor()
    await page.keyboard.press('Meta+d')
    await scene.id('verdict-card').waitFor()
    await page.keyboard.press('Escape')
    await page.keyboard.press('Escape')
    expect(await scene.calls('hidePanel')).toHaveLength(1)
    await page.keyboard.press('Meta+w')
    expect(await scene.calls('hidePanel')).toHaveLength(2)
    await page.keyboard.press('Meta+Shift+O')
    expect(await scene.calls('setView')).toEqual(['window'])
  })

  test('shows where it is, in an order that follows the eye', async () => {
    const { page } = await show('ready', 'panel')
    await scene.id('composer').focus()
    const stops: string[] = []
    for (let step = 0; step < 3; step += 1) {
      await page.keyboard.press('Tab')
      stops.push(
        await page.evaluate(() => {
          const style = getComputedStyle(document.activeElement!)
          return `${document.activeElement!.getAttribute('data-testid')} ${style.outlineStyle} ${parseFloat(style.outlineWidth) >= 2}`
        }),
      )
    }
    expect(stops.slice(0, 2)).toEqual(['model-picker solid true', 'offload-auto solid true'])
  })
})

describe('gauges', () => {
  test('say what is not known, and why', async () => {
    await show('unknown')
    expect(await scene.id('gauge-swap').innerText()).toContain('—')
    expect(await scene.id('gauge-swap').getAttribute('title')).toBe('Not known: /proc/vmstat cannot be read in this container')
    expect(await scene.id('gauge-memory').innerText()).toContain('of 24 GB')
    expect(await scene.id('gauge-memory').innerText()).not.toContain('weights')
  })

  test('have a status in word and shape, not in colour alone', async () => {
    await show('swapping', 'panel')
    await scene.page.waitForFunction(() => document.querySelector('[data-testid=gauge-swap]')?.getAttribute('data-status') === 'critical')
    expect(await scene.id('gauge-swap').getAttribute('aria-label')).toContain('swapping')
    expect(await scene.id('gauge-swap').locator('svg').count()).toBe(1)
  })
})

test('panel and window are one: the chat stays in place', async () => {
  const { page } = await show('ready', 'panel')
  await page.keyboard.press('Meta+2')
  await scene.id('message-assistant').waitFor()
  await scene.id('composer').fill('kept')
  await page.setViewportSize({ width: 1040, height: 720 })
  await scene.id('window').waitFor()
  expect(await scene.id('composer').inputValue()).toBe('kept')
  expect(await scene.id('message-assistant').innerText()).toContain('Three things follow')
})

test('nothing is cut off sideways at the narrowest', async () => {
  for (const size of ['narrow', 'small'] as const) {
    const { page } = await show('german', size)
    await page.keyboard.press('Meta+1')
    await scene.id('message-assistant').waitFor()
    const tooWide = () => page.evaluate(() => [...document.querySelectorAll('#app *')].filter((element) => element.getBoundingClientRect().right > window.innerWidth + 1 && getComputedStyle(element).position !== 'fixed' && !element.closest('pre, .scroll')).map((element) => element.outerHTML.slice(0, 90)))
    expect(await tooWide()).toEqual([])
    for (const name of ['nodes', 'history']) {
      if (size === 'narrow') await page.keyboard.press('Escape')
      if (size === 'narrow') await scene.id('open-chats').click()
      await scene.id(`open-${name}`).click()
      await scene.id('back').waitFor()
      expect(await tooWide(), name).toEqual([])
    }
    if (size === 'narrow') await scene.close()
  }
})
