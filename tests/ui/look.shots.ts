// Pictures of every composition, theme and scenario, for a person to look at: target/shots/ui/.

import { mkdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, test } from 'vitest'
import { Stage, type Scene, type Size } from './browser'

const folder = fileURLToPath(new URL('../../target/shots/ui/', import.meta.url))
const model = '/Users/kim/Downloads/Model-Q4_K_M.gguf'

type Shot = { name: string; fake: string; sizes?: Size[]; set?: (scene: Scene, size: Size) => Promise<void> }

const open = (title: string) => async (scene: Scene, size: Size) => {
  if (size === 'panel' || size === 'narrow') await scene.id('open-chats').click()
  await scene.id('conversation-row').filter({ hasText: title }).first().click()
  await scene.id('message-assistant').last().waitFor()
  await scene.page.mouse.move(1, 1)
}

const place = (name: 'models' | 'nodes' | 'history' | 'settings') => async (scene: Scene, size: Size) => {
  if (size === 'panel' || size === 'narrow') {
    if (name !== 'settings') await scene.id('open-chats').click()
  }
  await scene.id(`open-${name}`).first().click()
  await scene.page.mouse.move(1, 1)
}

const ask = (text: string, until: string) => async (scene: Scene) => {
  await scene.ask(text)
  await scene.page.getByText(until).first().waitFor()
}

const drop = (...paths: string[]) => async (scene: Scene) => {
  await scene.drag('drop', ...paths)
  await scene.id('verdict-card').waitFor()
}

const question = "Why can't I hold a MutexGuard across .await here?"

const shots: Shot[] = [
  { name: 'no-model', fake: 'no-model' },
  { name: 'first-chat', fake: 'first' },
  { name: 'measuring', fake: 'measuring', set: (scene) => scene.id('calibration-measure').click() },
  { name: 'measured', fake: 'first', sizes: ['panel', 'window', 'narrow'], set: async (scene) => {
    await scene.id('calibration-measure').click()
    await scene.id('calibration-done').waitFor()
  } },
  { name: 'measure-fails', fake: 'measure-fails', sizes: ['panel'], set: async (scene) => {
    await scene.id('calibration-measure').click()
    await scene.id('calibration-offer').getByText('Not measured').waitFor()
  } },
  { name: 'streaming', fake: 'streaming', set: ask(question, 'for as short as you can') },
  { name: 'loading', fake: 'loading', set: ask(question, 'Loading Qwen3 8B') },
  { name: 'waiting', fake: 'waiting', set: ask(question, 'Waiting for studio') },
  { name: 'seam', fake: 'ready', set: open('Borrowing') },
  { name: 'table-and-code', fake: 'ready', set: open('Swap rate') },
  { name: 'stays-here', fake: 'ready', set: open('Contract') },
  {
    name: 'decision-card',
    fake: 'ready',
    set: async (scene, size) => {
      await open('Borrowing')(scene, size)
      await scene.page.keyboard.press('Meta+i')
      await scene.id('decision-card').waitFor()
    },
  },
  { name: 'moving', fake: 'moving', sizes: ['panel', 'window', 'narrow', 'small'], set: ask(question, 'must be.') },
  { name: 'moved-back', fake: 'move-back', set: async (scene) => {
    await scene.ask(question)
    await scene.id('send').waitFor()
  } },
  { name: 'seam-card', fake: 'move-back', set: async (scene) => {
    await scene.ask(question)
    await scene.id('send').waitFor()
    await scene.id('seam').first().click()
    await scene.id('decision-card').waitFor()
  } },
  { name: 'move-menu', fake: 'moving', set: async (scene) => {
    await scene.ask(question)
    await scene.id('seam').waitFor()
    await scene.id('move-answer').click()
    await scene.id('move-menu').waitFor()
  } },
  { name: 'history', fake: 'ready', sizes: ['panel', 'window', 'narrow', 'small'], set: place('history') },
  { name: 'history-empty', fake: 'history-empty', set: place('history') },
  { name: 'history-card', fake: 'ready', set: async (scene, size) => {
    await place('history')(scene, size)
    await scene.id('history-entry').first().click()
    await scene.id('decision-card').waitFor()
  } },
  { name: 'drop-hover', fake: 'drop-tight', set: async (scene) => {
    await scene.drag('enter', '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf')
    await scene.page.getByText('needed').waitFor()
  } },
  { name: 'drop-hover-too-big', fake: 'drop-too-big', set: async (scene) => {
    await scene.drag('enter', '/Users/kim/Downloads/Llama-3.3-70B-Instruct-Q4_K_M.gguf')
    await scene.page.getByText('needed').waitFor()
  } },
  { name: 'verdict-well', fake: 'drop-well', set: drop(model) },
  { name: 'verdict-tight', fake: 'drop-tight', set: drop(model) },
  { name: 'verdict-too-big', fake: 'drop-too-big', set: drop(model) },
  { name: 'verdict-broken', fake: 'drop-broken', set: drop('/Users/kim/Downloads/gemma-3-12b-it-Q4_0.gguf') },
  { name: 'verdict-several', fake: 'drop-several', set: drop('/a/Qwen3-4B-Q4_K_M.gguf', '/a/Llama-3.3-70B-Instruct-Q4_K_M.gguf', '/a/gemma-3-12b-it-Q4_0.gguf', '/a/invoice-2026-05.pdf') },
  { name: 'node-gone', fake: 'node-gone', set: ask(question, 'went away') },
  { name: 'node-refused', fake: 'node-refused', set: ask(question, 'does not answer') },
  { name: 'engine-failed', fake: 'engine-failed', set: ask(question, 'The engine stopped') },
  { name: 'disk-full', fake: 'disk-full', set: ask(question, 'The disk is full') },
  { name: 'swapping', fake: 'swapping', set: open('Swap rate') },
  { name: 'unknown', fake: 'unknown' },
  { name: 'models', fake: 'ready', set: place('models') },
  { name: 'nodes', fake: 'ready', set: place('nodes') },
  { name: 'settings', fake: 'ready', set: place('settings') },
  { name: 'settings-gateway', fake: 'ready', set: async (scene, size) => {
    await place('settings')(scene, size)
    await scene.id('gateway-url').last().scrollIntoViewIfNeeded()
  } },
  { name: 'need-a-node', fake: 'no-node', set: async (scene) => {
    await scene.id('offload-remote').click()
    await scene.id('node-url').waitFor()
  } },
  { name: 'model-picker', fake: 'ready', set: async (scene) => {
    await scene.id('model-picker').click()
    await scene.page.keyboard.press('ArrowDown')
    await scene.page.keyboard.press('ArrowDown')
  } },
  { name: 'chats-drawer', fake: 'ready', sizes: ['panel'], set: async (scene) => {
    await scene.id('open-chats').click()
    await scene.id('conversation-row').nth(1).hover()
  } },
  { name: 'hour', fake: 'ready', set: async (scene) => {
    await scene.id('gauge-speed').click()
    await scene.page.getByText('Highest').waitFor()
  } },
  { name: 'german', fake: 'german', sizes: ['narrow', 'small'], set: open('Speicher') },
  { name: 'japanese', fake: 'japanese', sizes: ['narrow', 'small'], set: open('非同期') },
]

let stage: Stage

beforeAll(async () => {
  mkdirSync(folder, { recursive: true })
  stage = await Stage.open()
})
afterAll(() => stage.close())

const only = process.env.SHOTS?.split(',')
const scales = process.env.SCALES?.split(',').map(Number) ?? [1, 2]

for (const { name, fake, sizes = ['panel', 'window'] as Size[], set } of shots) {
  if (only && !only.includes(name)) continue
  test(name, async () => {
    for (const size of sizes) {
      for (const theme of ['light', 'dark'] as const) {
        for (const scale of scales) {
          const scene = await stage.show(fake, size, { theme, scale })
          await set?.(scene, size)
          await scene.page.evaluate(() => Promise.all(document.getAnimations().map((animation) => (animation.effect?.getTiming().iterations === Infinity ? null : animation.finished))))
          await scene.page.screenshot({ path: `${folder}${name}-${size}-${theme}@${scale}x.png` })
          await scene.close()
        }
      }
    }
  })
}
