/**
 * The one door between the interface and the product: every type that crosses it, and what can be asked of it.
 * `TauriBackend` speaks to the shell, `FakeBackend` plays scenarios in a plain browser.
 */

export type Verdict = 'runsWell' | 'tight' | 'tooBig' | 'unknown'
export type OffloadMode = 'localOnly' | 'auto' | 'remote'
export type Theme = 'system' | 'light' | 'dark'
export type ThermalState = 'nominal' | 'fair' | 'serious' | 'critical'
export type ViewKind = 'panel' | 'window'
export type AddHow = 'reference' | 'move' | 'copy'

export type FitDto = {
  verdict: Verdict
  contextLen: number
  neededBytes: number
  weightsBytes: number
  kvCacheBytes: number
  scratchBytes: number
  budgetBytes: number | null
  availableBytes: number | null
  maxContext: number | null
  sentence: string
}

export type ModelDto = {
  id: string
  name: string
  architecture: string
  quantization: string
  fileBytes: number
  parameters: number
  contextLen: number
  path: string
  origin: 'folder' | 'added' | 'argument'
  error: string | null
  fit: FitDto | null
  loaded: boolean
  decodeTokensPerSec: number | null
}

export type VerdictDto =
  | {
      kind: 'model'
      model: ModelDto
      fits: FitDto[]
      nodesThatCould: string[]
      alreadyListed: boolean
      license: string | null
      hasChatTemplate: boolean
      elapsedMs: number
    }
  | { kind: 'refused'; title: string; sentence: string; hint: string | null; path: string }

export type DecisionDto = {
  target: 'here' | 'node' | 'refuse'
  place: string
  reason: string
  sentence: string
  counterfactual: string | null
  readings: { name: string; value: string; limit: string | null; exceeded: boolean | null }[]
  alternatives: { place: string; outcome: string }[]
}

export type SegmentDto = {
  place: string
  model: string
  reason: string
  sentence: string
  decodeTokensPerSec: number | null
  ttftMs: number | null
  completionTokens: number | null
  startedAtChar: number
}

export type MessageDto = {
  id: number
  conversationId: number
  role: 'system' | 'user' | 'assistant' | 'tool'
  text: string
  thinking: string
  state: 'writing' | 'done' | 'stopped' | 'interrupted' | 'failed'
  error: string | null
  segments: SegmentDto[]
  decision: DecisionDto | null
  createdAtMs: number
}

export type ConversationSummaryDto = { id: number; title: string; updatedAtMs: number; staysLocal: boolean }

export type ConversationDto = {
  id: number
  title: string
  staysLocal: boolean
  messages: MessageDto[]
  draft: string
}

export type NodeDto = {
  id: string
  name: string
  url: string
  hasKey: boolean
  state: 'unknown' | 'ready' | 'unreachable' | 'unauthorized' | 'notANode'
  sentence: string | null
  engine: string | null
  models: string[]
  roundTripMs: number | null
  decodeTokensPerSec: number | null
}

export type SettingsDto = {
  offload: OffloadMode
  model: string | null
  contextLen: number
  modelsFolder: string
  reserveBytes: number
  maxSwapUsedRatio: number
  maxSwapInPerSec: number
  maxThermal: 'fair' | 'serious' | 'critical'
  theme: Theme
  systemPrompt: string
  temperature: number | null
}

export type VitalsDto = {
  atMs: number
  memory: {
    totalBytes: number
    usedBytes: number
    wiredBytes: number | null
    compressedBytes: number | null
    availableBytes: number
    limitBytes: number | null
  } | null
  swap: { totalBytes: number; usedBytes: number; inPerSec: number | null; outPerSec: number | null } | null
  pressure: 'normal' | 'warning' | 'critical' | null
  thermal: ThermalState | null
  thermalPressure: string | null
  temperatureCelsius: number | null
  cpuBusyRatio: number | null
  gpuBusyRatio: number | null
  onBattery: boolean | null
  lowPowerMode: boolean | null
  ownFootprintBytes: number | null
  weightsBytes: number
  kvCacheBytes: number
  decodeTokensPerSec: number | null
  baselineTokensPerSec: number | null
  unavailable: { reading: string; why: string }[]
}

export type ErrorDto = { code: string; sentence: string; hint: string | null }

export type ReplyEventDto =
  | { type: 'accepted'; conversationId: number; userMessageId: number; messageId: number }
  | { type: 'routed'; decision: DecisionDto }
  | { type: 'progress'; phase: 'loading' | 'waiting' | 'prefill'; done: number; total: number }
  | { type: 'text'; text: string }
  | { type: 'thinking'; text: string }
  | { type: 'finished'; message: MessageDto }
  | { type: 'failed'; error: ErrorDto; message: MessageDto | null }

export type BootDto = {
  version: string
  platform: 'macos' | 'linux'
  machine: string
  device: string
  settings: SettingsDto
  models: ModelDto[]
  nodes: NodeDto[]
  conversations: ConversationSummaryDto[]
  draft: string
  /** What to say about the start, once. */
  notice: string | null
}

/** What one question asks for. `text: null` answers the last question again. */
export type SendMessage = {
  conversationId: number | null
  text: string | null
  model: string | null
  /** `policy`, `here`, or a node's id. */
  place: string
}

/** A file drag over the window, as the system reports it. */
export type FileDrag = { type: 'enter'; paths: string[] } | { type: 'leave' } | { type: 'drop'; paths: string[] }

/** Broadcasts of the product, by name. */
export type BackendEvents = {
  vitals: VitalsDto
  modelsChanged: ModelDto[]
  nodesChanged: NodeDto[]
  conversationsChanged: ConversationSummaryDto[]
  settingsChanged: SettingsDto
  viewChanged: ViewKind
  openSettings: null
  /** Model files opened from the desktop: looked at as dropped ones are. */
  filesOpened: string[]
}

/** Stops a running reply. Safe to call more than once. */
export type Cancel = () => void
export type Unsubscribe = () => void

/** Every call may reject with an {@link ErrorDto}. */
export interface Backend {
  boot(): Promise<BootDto>

  sendMessage(request: SendMessage, onEvent: (event: ReplyEventDto) => void): Cancel
  listConversations(): Promise<ConversationSummaryDto[]>
  openConversation(id: number): Promise<ConversationDto>
  renameConversation(id: number, title: string): Promise<void>
  deleteConversation(id: number): Promise<void>
  setStaysLocal(id: number, staysLocal: boolean): Promise<void>
  saveDraft(conversationId: number | null, text: string): Promise<void>

  inspectFiles(paths: string[]): Promise<VerdictDto[]>
  addModel(path: string, how: AddHow): Promise<ModelDto>
  removeModel(id: string): Promise<void>
  /** Opens the system's file dialog. `null`: the person closed it. */
  chooseModelFile(): Promise<string | null>

  saveSettings(settings: SettingsDto): Promise<SettingsDto>
  addNode(url: string, key: string | null): Promise<NodeDto>
  removeNode(id: string): Promise<void>
  probeNode(id: string): Promise<NodeDto>

  /** Up to an hour of readings, oldest first. */
  vitalsHistory(): Promise<VitalsDto[]>
  copyText(text: string): Promise<void>
  openUrl(url: string): Promise<void>
  setView(view: ViewKind): Promise<void>
  hidePanel(): Promise<void>

  on<Name extends keyof BackendEvents>(name: Name, listener: (payload: BackendEvents[Name]) => void): Unsubscribe
  onFileDrag(listener: (drag: FileDrag) => void): Unsubscribe
}

/** Whatever was thrown, as a sentence a person can read. */
export function toError(thrown: unknown): ErrorDto {
  if (typeof thrown === 'object' && thrown !== null && 'sentence' in thrown && 'code' in thrown) {
    return thrown as ErrorDto
  }
  return { code: 'internal', sentence: 'Something inside Tidegate failed.', hint: String(thrown) }
}
