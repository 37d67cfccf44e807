/** A backend without a product: plays one scenario, so the whole interface runs in a plain browser. */

import type {
  AddHow,
  Backend,
  BackendEvents,
  BootDto,
  CalibrationDto,
  Cancel,
  ConversationDto,
  ConversationSummaryDto,
  DecisionDto,
  DecisionEntryDto,
  ErrorDto,
  FileDrag,
  MessageDto,
  ModelDto,
  NodeDto,
  ProgramsDto,
  ReplyEventDto,
  SegmentDto,
  SendMessage,
  SettingsDto,
  Trust,
  Unsubscribe,
  VerdictDto,
  ViewKind,
  VitalsDto,
} from './backend'
import { hereDecision, moveDecision, newId, now, scenario, updatedAt, type Scenario, type Step } from './fake/scenarios'

type Listeners = { [Name in keyof BackendEvents]: Set<(payload: BackendEvents[Name]) => void> }

const refuse = (code: string, sentence: string, hint: string | null = null): ErrorDto => ({ code, sentence, hint })

const servedWith = (settings: SettingsDto): ProgramsDto => ({ url: settings.servesPrograms ? 'http://127.0.0.1:11500' : null, error: null })

type Mover = (next: { decision: DecisionDto; placeId: string; continuation: string; gapMs: number; ended: string }) => void

/** The part of an answer that begins where the answer has come to. */
function part({ place, reason, sentence, target, ...rest }: DecisionDto, answer: MessageDto): SegmentDto {
  return {
    place,
    placeId: target === 'here' ? 'here' : 'studio',
    model: target === 'here' ? 'Qwen3 8B' : 'qwen3-8b',
    reason,
    sentence,
    decodeTokensPerSec: null,
    ttftMs: null,
    completionTokens: null,
    startedAtChar: [...answer.text].length,
    thinkingAtChar: [...answer.thinking].length,
    continuation: null,
    gapMs: null,
    ended: null,
    decision: { place, reason, sentence, target, ...rest },
  }
}

/** The parts with the figures that come at the end. */
function finished(parts: SegmentDto[], answer: MessageDto): SegmentDto[] {
  return parts.map((each, index) => {
    const end = parts[index + 1]?.startedAtChar ?? [...answer.text].length
    return {
      ...each,
      completionTokens: Math.round((end - each.startedAtChar) / 3.6),
      decodeTokensPerSec: index === parts.length - 1 ? 43.6 : null,
      ttftMs: index === 0 ? 240 : null,
      ended: each.ended ?? 'finished',
    }
  })
}

/** A place that the person chose in the middle of an answer. */
function chosen(placeId: string): DecisionDto {
  const decision = placeId === 'here' ? hereDecision : moveDecision
  return { ...decision, place: placeId === 'here' ? 'Here' : `On ${placeId}`, reason: 'chosen', sentence: 'you chose it', counterfactual: null }
}

export class FakeBackend implements Backend {
  readonly #world: Scenario
  readonly #listeners: Listeners = { vitals: new Set(), modelsChanged: new Set(), nodesChanged: new Set(), conversationsChanged: new Set(), settingsChanged: new Set(), programsChanged: new Set(), viewChanged: new Set(), openSettings: new Set(), filesOpened: new Set() }
  readonly #updatedAt: Record<number, number> = { ...updatedAt }
  #seconds = 0
  #replying = 0
  /** Moves the answer of an id that is being written. */
  readonly #moves = new Map<number, (placeId: string) => void>()
  /** What was asked of the product, for tests to look at. */
  readonly calls: { name: string; value: unknown }[] = []

  constructor(name: string, change: Partial<SettingsDto> = {}) {
    this.#world = scenario(name)
    this.#world.settings = { ...this.#world.settings, ...change }
    setInterval(() => {
      if (document.hidden) return
      this.#seconds += 1
      this.#emit('vitals', this.#vitals(0))
    }, 1000)
    Object.assign(window, { tidegateFake: this })
  }

  /** `?fake=node-gone&theme=dark` */
  static fromAddress(search: string): FakeBackend {
    const parameters = new URLSearchParams(search)
    const theme = parameters.get('theme')
    return new FakeBackend(parameters.get('fake') ?? 'ready', theme === 'dark' || theme === 'light' ? { theme } : {})
  }

  #emit<Name extends keyof BackendEvents>(name: Name, payload: BackendEvents[Name]) {
    for (const listener of this.#listeners[name]) listener(payload)
  }

  #note(name: string, value: unknown) {
    this.calls.push({ name, value })
  }

  #vitals(secondsAgo: number): VitalsDto {
    const at = this.#world.vitals(secondsAgo, secondsAgo === 0 && this.#replying > 0)
    return { ...at, atMs: now + (this.#seconds - secondsAgo) * 1000 }
  }

  #conversation(id: number): ConversationDto {
    const found = this.#world.conversations.find((each) => each.id === id)
    if (!found) throw refuse('notFound', 'This chat is no longer there.')
    return found
  }

  #summaries(): ConversationSummaryDto[] {
    return this.#world.conversations.map(({ id, title, staysLocal }) => ({ id, title, staysLocal, updatedAtMs: this.#updatedAt[id] ?? now }))
  }

  async boot(): Promise<BootDto> {
    const { models, nodes, settings, draft, platform } = this.#world
    return {
      version: '0.1.0',
      platform,
      machine: platform === 'macos' ? 'MacBook Air, 24 GB' : 'Linux, 24 GB',
      device: platform === 'macos' ? 'Metal (Apple M3)' : 'CPU, 8 cores',
      settings,
      models,
      nodes,
      programs: servedWith(settings),
      conversations: this.#summaries(),
      draft,
      notice: null,
    }
  }

  sendMessage(request: SendMessage, onEvent: (event: ReplyEventDto) => void): Cancel {
    this.#note('sendMessage', request)
    let stopped = false
    let timer: ReturnType<typeof setTimeout> | undefined
    let stop = () => {}
    this.#replying += 1

    const run = async () => {
      const wait = (ms: number) => new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)))
      const question = request.text ?? ''
      const steps = this.#world.reply(question, request.place)
      const [first] = steps
      if (first?.do === 'refuse') {
        await wait(first.wait)
        onEvent({ type: 'failed', error: first.error, message: null })
        return
      }
      const { conversation, answer, userMessageId } = this.#accept(request)
      onEvent({ type: 'accepted', conversationId: conversation.id, userMessageId, messageId: answer.id })
      const decision = this.#world.decision(request.place)
      answer.decision = decision
      onEvent({ type: 'routed', decision })
      this.#decided('start', decision, answer)
      const ended = new Promise<'stopped'>((resolve) => (stop = () => resolve('stopped')))
      const parts = [part(decision, answer)]
      const move: Mover = (next) => {
        Object.assign(parts.at(-1)!, { ended: next.ended })
        parts.push({ ...part(next.decision, answer), placeId: next.placeId, continuation: next.continuation, gapMs: next.gapMs })
        const { startedAtChar, thinkingAtChar } = parts.at(-1)!
        this.#decided('move', next.decision, answer)
        onEvent({ type: 'moved', decision: next.decision, atChar: startedAtChar, thinkingAtChar })
      }
      this.#moves.set(answer.id, (placeId) => move({ decision: chosen(placeId), placeId, continuation: 'text', gapMs: 210, ended: 'handed over' }))
      const outcome = await Promise.race([this.#play(steps, answer, onEvent, move, wait, () => stopped), ended])
      clearTimeout(timer)
      this.#moves.delete(answer.id)
      const segments = answer.text ? finished(parts, answer) : []
      if (outcome === 'stopped' || outcome === 'done') {
        Object.assign(answer, { state: outcome, segments } satisfies Partial<MessageDto>)
        onEvent({ type: 'finished', message: { ...answer } })
      } else {
        Object.assign(answer, { state: answer.text ? 'interrupted' : 'failed', error: outcome.sentence, segments } satisfies Partial<MessageDto>)
        onEvent({ type: 'failed', error: outcome, message: { ...answer } })
      }
      this.#emit('conversationsChanged', this.#summaries())
    }

    void run().finally(() => (this.#replying -= 1))
    return () => {
      stopped = true
      this.#note('stopReply', null)
      setTimeout(stop, 20)
    }
  }

  #decided(kind: 'start' | 'move', decision: DecisionDto, { conversationId, id: messageId }: MessageDto) {
    const id = (this.#world.decisions[0]?.id ?? 0) + 1
    const entry: DecisionEntryDto = { id, atMs: now + this.#seconds * 1000, kind, askedBy: 'window', conversationId, messageId, model: 'Qwen3 8B', placeId: decision.target === 'here' ? 'here' : 'studio', decision }
    this.#world.decisions = [entry, ...this.#world.decisions]
  }

  #accept(request: SendMessage) {
    let conversation = this.#world.conversations.find(({ id }) => id === request.conversationId)
    if (!conversation) {
      conversation = { id: newId(), title: (request.text ?? '').split('\n')[0]?.slice(0, 48) ?? '', staysLocal: false, messages: [], draft: '' }
      this.#world.conversations = [conversation, ...this.#world.conversations]
    }
    this.#updatedAt[conversation.id] = now + this.#seconds * 1000
    const blank = { conversationId: conversation.id, thinking: '', error: null, segments: [], decision: null, createdAtMs: now }
    let userMessageId = conversation.messages.findLast(({ role }) => role === 'user')?.id ?? 0
    if (request.text !== null) {
      userMessageId = newId()
      conversation.messages.push({ ...blank, id: userMessageId, role: 'user', text: request.text, state: 'done' })
    }
    const answer: MessageDto = { ...blank, id: newId(), role: 'assistant', text: '', state: 'writing' }
    conversation.messages.push(answer)
    this.#emit('conversationsChanged', this.#summaries())
    return { conversation, answer, userMessageId }
  }

  async #play(steps: Step[], answer: MessageDto, onEvent: (event: ReplyEventDto) => void, move: Mover, wait: (ms: number) => Promise<void>, stopped: () => boolean): Promise<'done' | ErrorDto> {
    // Browsers round short timers up: steps are played by the clock, several at once where they are due.
    let due = performance.now()
    for (const step of steps) {
      due += step.wait
      const early = due - performance.now()
      if (early > 4) await wait(early)
      if (stopped()) await new Promise(() => {})
      switch (step.do) {
        case 'progress':
          onEvent({ type: 'progress', phase: step.phase, done: step.done, total: step.total })
          break
        case 'text':
          answer.text += step.text
          onEvent({ type: 'text', text: step.text })
          break
        case 'thinking':
          answer.thinking += step.text
          onEvent({ type: 'thinking', text: step.text })
          break
        case 'note':
          onEvent({ type: 'note', sentence: step.sentence })
          break
        case 'move':
          move(step)
          break
        case 'fail':
          if (!step.goesOn) return step.error
          onEvent({ type: 'failed', error: step.error, message: { ...answer } })
          break
        case 'hold':
          await new Promise(() => {})
          break
        case 'refuse':
          return step.error
      }
    }
    return 'done'
  }

  async moveAnswer(messageId: number, placeId: string) {
    this.#note('moveAnswer', { messageId, placeId })
    const move = this.#moves.get(messageId)
    if (!move) throw refuse('notFound', 'This answer isn’t being written any more.')
    setTimeout(() => move(placeId), 60)
  }
  async listDecisions(before: number | null, limit: number): Promise<DecisionEntryDto[]> {
    this.#note('listDecisions', { before, limit })
    return this.#world.decisions.filter(({ id }) => before === null || id < before).slice(0, limit)
  }
  async clearDecisions() {
    this.#note('clearDecisions', null)
    this.#world.decisions = []
  }
  async listConversations() {
    return this.#summaries()
  }
  async openConversation(id: number): Promise<ConversationDto> {
    return structuredClone(this.#conversation(id))
  }
  async renameConversation(id: number, title: string) {
    this.#conversation(id).title = title
    this.#emit('conversationsChanged', this.#summaries())
  }
  async deleteConversation(id: number) {
    this.#world.conversations = this.#world.conversations.filter((each) => each.id !== id)
    this.#emit('conversationsChanged', this.#summaries())
  }
  async setStaysLocal(id: number, staysLocal: boolean) {
    this.#conversation(id).staysLocal = staysLocal
    this.#emit('conversationsChanged', this.#summaries())
  }
  async saveDraft(conversationId: number | null, text: string) {
    this.#note('saveDraft', { conversationId, text })
    if (conversationId === null) this.#world.draft = text
    else this.#conversation(conversationId).draft = text
  }

  async takeOpenedFiles(): Promise<string[]> {
    return []
  }
  async inspectFiles(paths: string[]): Promise<VerdictDto[]> {
    this.#note('inspectFiles', paths)
    await new Promise((resolve) => setTimeout(resolve, 30))
    return this.#world.verdicts(paths)
  }
  async addModel(path: string, how: AddHow): Promise<ModelDto> {
    this.#note('addModel', { path, how })
    const verdict = this.#world.verdicts([path]).find((each) => each.kind === 'model')
    if (!verdict) throw refuse('badFile', 'This file cannot be added.')
    const added: ModelDto = { ...verdict.model, id: `added-${newId()}`, origin: how === 'reference' ? 'added' : 'folder' }
    this.#world.models = [...this.#world.models, added]
    this.#emit('modelsChanged', this.#world.models)
    return added
  }
  async removeModel(id: string) {
    this.#world.models = this.#world.models.filter((each) => each.id !== id)
    this.#emit('modelsChanged', this.#world.models)
  }
  async chooseModelFile() {
    this.#note('chooseModelFile', null)
    return this.#world.chooses
  }

  async saveSettings(settings: SettingsDto): Promise<SettingsDto> {
    this.#note('saveSettings', settings)
    this.#world.settings = settings
    this.#emit('programsChanged', servedWith(settings))
    return settings
  }
  async addNode(url: string, key: string | null): Promise<NodeDto> {
    this.#note('addNode', { url, hasKey: key !== null })
    await new Promise((resolve) => setTimeout(resolve, 120))
    if (!/^(https?:\/\/)?[\w.-]+(:\d+)?(\/.*)?$/.test(url)) throw refuse('badRequest', `“${url}” is not an address.`, 'An address looks like http://studio.local:8080.')
    const name = url.replace(/^https?:\/\//, '').split(/[.:/]/)[0] ?? url
    const node: NodeDto = { id: name, name, url: url.startsWith('http') ? url : `http://${url}`, hasKey: key !== null, trust: /\.local|localhost|^127\./.test(url) ? 'own' : 'rented', state: 'ready', sentence: null, engine: 'llama.cpp', models: ['qwen3-8b'], roundTripMs: 3.1, decodeTokensPerSec: null }
    this.#world.nodes = [...this.#world.nodes.filter(({ id }) => id !== node.id), node]
    this.#emit('nodesChanged', this.#world.nodes)
    return node
  }
  async removeNode(id: string) {
    this.#world.nodes = this.#world.nodes.filter((each) => each.id !== id)
    this.#emit('nodesChanged', this.#world.nodes)
  }
  async probeNode(id: string): Promise<NodeDto> {
    await new Promise((resolve) => setTimeout(resolve, 200))
    const node = this.#world.nodes.find((each) => each.id === id)
    if (!node) throw refuse('notFound', 'This node is no longer there.')
    return node
  }

  async setNodeTrust(id: string, trust: Trust) {
    this.#note('setNodeTrust', { id, trust })
    this.#world.nodes = this.#world.nodes.map((node) => (node.id === id ? { ...node, trust } : node))
    this.#emit('nodesChanged', this.#world.nodes)
  }

  async vitalsHistory(): Promise<VitalsDto[]> {
    return Array.from({ length: 600 }, (_, index) => this.#vitals(599 - index))
  }
  async calibration(): Promise<CalibrationDto | null> {
    return this.#world.calibration
  }
  async calibrate(): Promise<CalibrationDto> {
    this.#note('calibrate', null)
    const measured = await this.#world.calibrates()
    this.#world.calibration = measured
    return measured
  }
  async copyText(text: string) {
    this.#note('copyText', text)
    await navigator.clipboard?.writeText(text).catch(() => {})
  }
  async openUrl(url: string) {
    this.#note('openUrl', url)
    window.open(url, '_blank', 'noopener')
  }
  async setView(view: ViewKind) {
    this.#note('setView', view)
    this.#emit('viewChanged', view)
  }
  async hidePanel() {
    this.#note('hidePanel', null)
  }

  on<Name extends keyof BackendEvents>(name: Name, listener: (payload: BackendEvents[Name]) => void): Unsubscribe {
    this.#listeners[name].add(listener)
    return () => this.#listeners[name].delete(listener)
  }

  /** Real files dragged over the page, and `fake-drag` events that tests send. */
  onFileDrag(listener: (drag: FileDrag) => void): Unsubscribe {
    const names = (event: DragEvent) => [...(event.dataTransfer?.items ?? [])].map((_, index) => `/dropped/${event.dataTransfer?.files[index]?.name ?? `file-${index}.gguf`}`)
    let depth = 0
    const handlers: Record<string, (event: DragEvent) => void> = {
      dragenter: (event) => {
        depth += 1
        if (depth === 1) listener({ type: 'enter', paths: names(event) })
      },
      dragover: (event) => event.preventDefault(),
      dragleave: () => {
        depth -= 1
        if (depth === 0) listener({ type: 'leave' })
      },
      drop: (event) => {
        event.preventDefault()
        depth = 0
        listener({ type: 'drop', paths: names(event) })
      },
    }
    const fake = (event: Event) => listener((event as CustomEvent<FileDrag>).detail)
    for (const [name, handler] of Object.entries(handlers)) window.addEventListener(name, handler as EventListener)
    window.addEventListener('fake-drag', fake)
    return () => {
      for (const [name, handler] of Object.entries(handlers)) window.removeEventListener(name, handler as EventListener)
      window.removeEventListener('fake-drag', fake)
    }
  }
}
