/** What the whole window shares: the product's broadcasts, which page is open, and the stores of the features. */

import { CalibrationStore } from '../features/calibration/calibrationStore.svelte'
import { ChatStore } from '../features/chat/chatStore.svelte'
import { DropStore } from '../features/drop/dropStore.svelte'
import { VitalsStore } from '../features/gauges/vitalsStore.svelte'
import { currentModel } from '../features/models/facts'
import {
  toError,
  type Backend,
  type BootDto,
  type ConversationSummaryDto,
  type ErrorDto,
  type ModelDto,
  type NodeDto,
  type OffloadMode,
  type ProgramsDto,
  type SettingsDto,
  type Trust,
} from '../ipc/backend'

export type Page = 'chat' | 'models' | 'nodes' | 'history' | 'settings'

export class Session {
  readonly backend: Backend
  readonly boot: Pick<BootDto, 'version' | 'platform' | 'machine' | 'device'>
  readonly chats: ChatStore
  readonly vitals: VitalsStore
  readonly drop: DropStore
  readonly calibration: CalibrationStore
  settings: SettingsDto = $state.raw() as SettingsDto
  models: ModelDto[] = $state.raw([])
  nodes: NodeDto[] = $state.raw([])
  programs: ProgramsDto = $state.raw({ url: null, error: null })
  conversations: ConversationSummaryDto[] = $state.raw([])
  page = $state<Page>('chat')
  /** Remote was asked for while there is no node: the nodes page says so, and adding one switches over. */
  needsNode = $state(false)
  settingsError = $state.raw<ErrorDto | null>(null)
  /** The model under the pointer in a list: its footprint is drawn on the memory bar. */
  preview = $state.raw<ModelDto | null>(null)
  #saves = 0

  constructor(backend: Backend, boot: BootDto) {
    this.backend = backend
    this.boot = boot
    this.settings = boot.settings
    this.models = boot.models
    this.nodes = boot.nodes
    this.programs = boot.programs
    this.conversations = boot.conversations
    this.chats = new ChatStore(backend)
    this.chats.restoreDraft(boot.draft)
    if (boot.notice) this.chats.current.apply({ type: 'noticed', error: { code: 'notice', sentence: boot.notice, hint: null } })
    this.vitals = new VitalsStore(backend)
    this.calibration = new CalibrationStore(backend)
    this.drop = new DropStore(backend, (model) => {
      // A model the person has just added is the one they want to use.
      if (!this.models.some(({ id }) => id === model.id)) this.models = [...this.models, model]
      if (model.fit?.verdict !== 'tooBig') void this.save({ model: model.id })
      this.page = 'chat'
    })
  }

  start(): () => void {
    const { backend } = this
    const stops = [
      this.vitals.start(),
      this.drop.start(),
      backend.on('modelsChanged', (models) => (this.models = models)),
      backend.on('nodesChanged', (nodes) => (this.nodes = nodes)),
      backend.on('conversationsChanged', (conversations) => this.#took(conversations)),
      backend.on('settingsChanged', (settings) => (this.settings = settings)),
      backend.on('programsChanged', (programs) => (this.programs = programs)),
      backend.on('openSettings', () => (this.page = 'settings')),
      backend.on('filesOpened', () => void this.#takeOpenedFiles()),
    ]
    void this.#takeOpenedFiles()
    this.try(() => this.calibration.start())
    return () => stops.forEach((stop) => stop())
  }

  async #takeOpenedFiles() {
    const paths = await this.backend.takeOpenedFiles()
    if (paths.length > 0) this.drop.inspect(paths)
  }

  #took(conversations: ConversationSummaryDto[]) {
    this.conversations = conversations
    const { current } = this.chats
    const own = conversations.find(({ id }) => id === current.state.conversationId)
    if (own && own.title !== current.state.title) current.apply({ type: 'renamed', title: own.title })
    if (own && own.staysLocal !== current.state.staysLocal) current.apply({ type: 'staysLocal', staysLocal: own.staysLocal })
  }

  get model(): ModelDto | null {
    return currentModel(this.models, this.settings.model)
  }

  /** Whether to offer measuring this machine, or to show how the offer that was taken goes. */
  get offersCalibration(): boolean {
    const { known, measured, taken } = this.calibration
    const usable = this.model !== null && this.model.error === null && this.model.fit?.verdict !== 'tooBig'
    return taken || (known && measured === null && usable && this.settings.offerCalibration)
  }

  declineCalibration() {
    this.calibration.taken = false
    void this.save({ offerCalibration: false })
  }

  /** Why nothing of the chat in view may leave this machine: the chat, or the model that answers. */
  get stays(): 'chat' | 'model' | null {
    if (this.chats.current.state.staysLocal) return 'chat'
    return this.model !== null && this.settings.modelsThatStay.includes(this.model.id) ? 'model' : null
  }

  /** The title of the chat in view. */
  get title(): string {
    const { conversationId, title } = this.chats.current.state
    return this.conversations.find(({ id }) => id === conversationId)?.title || title || 'New chat'
  }

  /** Why nothing can be sent now, or null. A node may have a model where this Mac has none. */
  get blocked(): string | null {
    if (this.model !== null) return null
    const node = this.settings.offload !== 'localOnly' && this.nodes.some(({ models }) => models.length > 0)
    return node ? null : 'There is no model yet'
  }

  async save(change: Partial<SettingsDto>) {
    const before = this.settings
    this.settings = { ...this.settings, ...change }
    const save = (this.#saves += 1)
    try {
      const saved = await this.backend.saveSettings(this.settings)
      // An answer to an older change must not undo a newer one.
      if (save === this.#saves) this.settings = saved
      this.settingsError = null
    } catch (thrown) {
      if (save === this.#saves) this.settings = before
      this.settingsError = toError(thrown)
      this.chats.current.apply({ type: 'noticed', error: this.settingsError })
    }
  }

  setOffload(mode: OffloadMode) {
    if (mode === 'remote' && this.nodes.length === 0) {
      this.needsNode = true
      this.page = 'nodes'
      return
    }
    void this.save({ offload: mode })
  }

  nextOffload() {
    if (this.stays !== null) return
    const modes: OffloadMode[] = ['localOnly', 'auto', 'remote']
    const next = modes[(modes.indexOf(this.settings.offload) + 1) % modes.length]
    if (next) this.setOffload(next)
  }

  send() {
    if (this.blocked === null) this.chats.send(this.chats.current.draft, this.model?.id ?? null, 'policy')
  }

  retry(place: 'policy' | 'here') {
    this.chats.retry(this.model?.id ?? null, place)
  }

  async addNode(url: string, key: string | null): Promise<NodeDto> {
    const node = await this.backend.addNode(url, key)
    this.nodes = [...this.nodes.filter(({ id }) => id !== node.id), node]
    if (this.needsNode) {
      this.needsNode = false
      void this.save({ offload: 'remote' })
    }
    return node
  }

  async removeNode(id: string) {
    await this.backend.removeNode(id)
    this.nodes = this.nodes.filter((node) => node.id !== id)
    // Remote with nowhere to go would refuse every question.
    if (this.nodes.length === 0 && this.settings.offload === 'remote') void this.save({ offload: 'auto' })
  }

  async probeNode(id: string): Promise<NodeDto> {
    const probed = await this.backend.probeNode(id)
    this.nodes = this.nodes.map((node) => (node.id === id ? probed : node))
    return probed
  }

  async setNodeTrust(id: string, trust: Trust) {
    await this.backend.setNodeTrust(id, trust)
    this.nodes = this.nodes.map((node) => (node.id === id ? { ...node, trust } : node))
  }

  /** Keeps what a model is asked on this machine, or lets it leave again. */
  setModelStays(id: string, stays: boolean) {
    const others = this.settings.modelsThatStay.filter((each) => each !== id)
    void this.save({ modelsThatStay: stays ? [...others, id] : others })
  }

  moveAnswer(messageId: number, placeId: string) {
    this.try(() => this.backend.moveAnswer(messageId, placeId))
  }

  /** Runs what a button asked for; what goes wrong is said above the composer. */
  try(work: () => Promise<unknown>) {
    work().catch((thrown: unknown) => this.chats.current.apply({ type: 'noticed', error: toError(thrown) }))
  }

  rename(id: number, title: string) {
    this.conversations = this.conversations.map((each) => (each.id === id ? { ...each, title } : each))
    if (this.chats.current.state.conversationId === id) this.chats.current.apply({ type: 'renamed', title })
    this.try(() => this.backend.renameConversation(id, title))
  }

  delete(id: number) {
    this.try(async () => {
      await this.backend.deleteConversation(id)
      this.chats.forget(id)
      this.conversations = this.conversations.filter((each) => each.id !== id)
    })
  }

  toggleStaysLocal() {
    const { current } = this.chats
    const { conversationId, staysLocal } = current.state
    if (conversationId === null) return
    this.try(async () => {
      await this.backend.setStaysLocal(conversationId, !staysLocal)
      current.apply({ type: 'staysLocal', staysLocal: !staysLocal })
    })
  }

  openChat(id: number) {
    this.page = 'chat'
    void this.chats.open(id)
  }

  newChat() {
    this.page = 'chat'
    this.chats.startNew()
  }

  copy = (text: string) => this.try(() => this.backend.copyText(text))
  link = (url: string) => this.try(() => this.backend.openUrl(url))
}
