import { mount } from 'svelte'
import type { Backend } from './ipc/backend'
import './styles/base.css'
import Root from './views/Root.svelte'

const dark = window.matchMedia('(prefers-color-scheme: dark)').matches
document.documentElement.dataset.theme = dark ? 'dark' : 'light'

/** The shell's backend inside the app, scenarios in a plain browser. */
async function backend(): Promise<Backend> {
  if ('__TAURI_INTERNALS__' in window) {
    document.documentElement.dataset.shell = ''
    const { TauriBackend } = await import('./ipc/tauriBackend')
    return new TauriBackend()
  }
  const { FakeBackend } = await import('./ipc/fakeBackend')
  return FakeBackend.fromAddress(window.location.search)
}

const target = document.getElementById('app')
if (!target) throw new Error('index.html has no element to draw into')
void backend().then((ready) => mount(Root, { target, props: { backend: ready } }))
