/** The door to the shell: commands, one channel for each reply, and the shell's events. */

import { Channel } from '@tauri-apps/api/core'
import { getCurrentWebview } from '@tauri-apps/api/webview'
import {
  toError,
  type AddHow,
  type Backend,
  type BackendEvents,
  type Cancel,
  type FileDrag,
  type ReplyEventDto,
  type SendMessage,
  type SettingsDto,
  type Trust,
  type Unsubscribe,
  type ViewKind,
} from './backend'
import { commands, events } from './bindings.gen'

/** Turns a listener that is attached later into one that can be detached at once. */
function detachable(attached: Promise<() => void>): Unsubscribe {
  let detached = false
  attached.then(
    (detach) => {
      if (detached) detach()
    },
    (error: unknown) => console.error('cannot listen', error),
  )
  return () => {
    detached = true
    void attached.then((detach) => detach())
  }
}

export class TauriBackend implements Backend {
  #replies = 0

  boot = commands.boot
  takeOpenedFiles = commands.takeOpenedFiles

  sendMessage(request: SendMessage, onEvent: (event: ReplyEventDto) => void): Cancel {
    const replyId = `reply-${Date.now()}-${(this.#replies += 1)}`
    const channel = new Channel<ReplyEventDto>()
    channel.onmessage = onEvent
    commands
      .sendMessage({ replyId, ...request }, channel)
      .catch((thrown: unknown) => onEvent({ type: 'failed', error: toError(thrown), message: null }))
    return () => void commands.stopReply(replyId).catch((thrown: unknown) => console.error('cannot stop', thrown))
  }

  listConversations = commands.listConversations
  openConversation = commands.openConversation
  listDecisions = commands.listDecisions
  inspectFiles = commands.inspectFiles
  chooseModelFile = commands.chooseModelFile
  vitalsHistory = commands.vitalsHistory
  calibration = commands.calibration
  calibrate = commands.calibrate
  probeNode = commands.probeNode

  // What answers nothing is `null` on the wire and `void` here.
  async moveAnswer(messageId: number, placeId: string) {
    await commands.moveAnswer(messageId, placeId)
  }
  async clearDecisions() {
    await commands.clearDecisions()
  }
  async renameConversation(id: number, title: string) {
    await commands.renameConversation(id, title)
  }
  async deleteConversation(id: number) {
    await commands.deleteConversation(id)
  }
  async setStaysLocal(id: number, staysLocal: boolean) {
    await commands.setStaysLocal(id, staysLocal)
  }
  async saveDraft(conversationId: number | null, text: string) {
    await commands.saveDraft(conversationId, text)
  }
  addModel(path: string, how: AddHow) {
    return commands.addModel(path, how)
  }
  async removeModel(id: string) {
    await commands.removeModel(id)
  }
  saveSettings(settings: SettingsDto) {
    return commands.saveSettings(settings)
  }
  addNode(url: string, key: string | null) {
    return commands.addNode(url, key)
  }
  async removeNode(id: string) {
    await commands.removeNode(id)
  }
  async setNodeTrust(id: string, trust: Trust) {
    await commands.setNodeTrust(id, trust)
  }
  async copyText(text: string) {
    await commands.copyText(text)
  }
  async openUrl(url: string) {
    await commands.openUrl(url)
  }
  async setView(view: ViewKind) {
    await commands.setView(view)
  }
  async hidePanel() {
    await commands.hidePanel()
  }

  on<Name extends keyof BackendEvents>(name: Name, listener: (payload: BackendEvents[Name]) => void): Unsubscribe {
    // Every name has the payload that `BackendEvents` gives it; the union of listeners is too wide for the checker.
    const event = events[name] as { listen(handle: (event: { payload: unknown }) => void): Promise<() => void> }
    return detachable(event.listen((event) => listener(event.payload as BackendEvents[Name])))
  }

  onFileDrag(listener: (drag: FileDrag) => void): Unsubscribe {
    return detachable(
      getCurrentWebview().onDragDropEvent(({ payload }) => {
        if (payload.type === 'enter' || payload.type === 'drop') listener({ type: payload.type, paths: payload.paths })
        if (payload.type === 'leave') listener({ type: 'leave' })
      }),
    )
  }
}
