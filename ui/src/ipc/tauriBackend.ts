/** The door to the shell: commands, one channel for each reply, and the shell's events. */

import { Channel, invoke } from '@tauri-apps/api/core'
import { listen } from '@tauri-apps/api/event'
import { getCurrentWebview } from '@tauri-apps/api/webview'
import {
  toError,
  type AddHow,
  type Backend,
  type BackendEvents,
  type BootDto,
  type Cancel,
  type ConversationDto,
  type ConversationSummaryDto,
  type FileDrag,
  type ModelDto,
  type NodeDto,
  type ReplyEventDto,
  type SendMessage,
  type SettingsDto,
  type Unsubscribe,
  type VerdictDto,
  type ViewKind,
  type VitalsDto,
} from './backend'

const eventNames: Record<keyof BackendEvents, string> = {
  vitals: 'vitals',
  modelsChanged: 'models-changed',
  nodesChanged: 'nodes-changed',
  conversationsChanged: 'conversations-changed',
  settingsChanged: 'settings-changed',
  viewChanged: 'view-changed',
  openSettings: 'open-settings',
  filesOpened: 'files-opened',
}

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

  boot() {
    return invoke<BootDto>('boot')
  }

  sendMessage(request: SendMessage, onEvent: (event: ReplyEventDto) => void): Cancel {
    const replyId = `reply-${Date.now()}-${(this.#replies += 1)}`
    const channel = new Channel<ReplyEventDto>()
    channel.onmessage = onEvent
    invoke('send_message', { request: { replyId, ...request }, onEvent: channel }).catch((thrown: unknown) =>
      onEvent({ type: 'failed', error: toError(thrown), message: null }),
    )
    return () => void invoke('stop_reply', { replyId }).catch((thrown: unknown) => console.error('cannot stop', thrown))
  }

  listConversations() {
    return invoke<ConversationSummaryDto[]>('list_conversations')
  }
  openConversation(id: number) {
    return invoke<ConversationDto>('open_conversation', { id })
  }
  renameConversation(id: number, title: string) {
    return invoke<void>('rename_conversation', { id, title })
  }
  deleteConversation(id: number) {
    return invoke<void>('delete_conversation', { id })
  }
  setStaysLocal(id: number, staysLocal: boolean) {
    return invoke<void>('set_stays_local', { id, staysLocal })
  }
  saveDraft(conversationId: number | null, text: string) {
    return invoke<void>('save_draft', { conversationId, text })
  }

  inspectFiles(paths: string[]) {
    return invoke<VerdictDto[]>('inspect_files', { paths })
  }
  addModel(path: string, how: AddHow) {
    return invoke<ModelDto>('add_model', { path, how })
  }
  removeModel(id: string) {
    return invoke<void>('remove_model', { id })
  }
  chooseModelFile() {
    return invoke<string | null>('choose_model_file')
  }

  saveSettings(settings: SettingsDto) {
    return invoke<SettingsDto>('save_settings', { settings })
  }
  addNode(url: string, key: string | null) {
    return invoke<NodeDto>('add_node', { url, key })
  }
  removeNode(id: string) {
    return invoke<void>('remove_node', { id })
  }
  probeNode(id: string) {
    return invoke<NodeDto>('probe_node', { id })
  }

  vitalsHistory() {
    return invoke<VitalsDto[]>('vitals_history')
  }
  copyText(text: string) {
    return invoke<void>('copy_text', { text })
  }
  openUrl(url: string) {
    return invoke<void>('open_url', { url })
  }
  setView(view: ViewKind) {
    return invoke<void>('set_view', { view })
  }
  hidePanel() {
    return invoke<void>('hide_panel')
  }

  on<Name extends keyof BackendEvents>(name: Name, listener: (payload: BackendEvents[Name]) => void): Unsubscribe {
    return detachable(listen<BackendEvents[Name]>(eventNames[name], (event) => listener(event.payload)))
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
