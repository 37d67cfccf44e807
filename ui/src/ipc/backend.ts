/**
 * The one door between the interface and the product: every type that crosses it, and what can be asked of it.
 * `TauriBackend` speaks to the shell, `FakeBackend` plays scenarios in a plain browser.
 */

import type {
  AddHowDto,
  AskedByDto,
  BootDto,
  CalibrationDto,
  ConversationDto,
  ConversationSummaryDto,
  DecisionEntryDto,
  DecisionKindDto,
  ErrorDto,
  FitVerdictDto,
  ModelDto,
  NodeDto,
  ProgramsDto,
  OffloadDto,
  ReplyEventDto,
  SendMessageDto,
  SettingsDto,
  ThemeDto,
  ThermalDto,
  TrustDto,
  VerdictDto,
  View,
  VitalsDto,
} from './bindings.gen'

export type {
  BootDto,
  CalibrationDto,
  ConversationDto,
  ConversationSummaryDto,
  DecisionDto,
  DecisionEntryDto,
  ErrorDto,
  FitDto,
  MessageDto,
  ModelDto,
  NodeDto,
  ProgramsDto,
  ReplyEventDto,
  SegmentDto,
  SettingsDto,
  VerdictDto,
  VitalsDto,
} from './bindings.gen'

export type AddHow = AddHowDto
export type AskedBy = AskedByDto
export type DecisionKind = DecisionKindDto
export type OffloadMode = OffloadDto
export type Theme = ThemeDto
export type ThermalState = ThermalDto
export type Trust = TrustDto
export type Verdict = FitVerdictDto
export type ViewKind = View

/** What one question asks for; the backend makes up the reply's id. */
export type SendMessage = Omit<SendMessageDto, 'replyId'>

/** A file drag over the window, as the system reports it. */
export type FileDrag = { type: 'enter'; paths: string[] } | { type: 'leave' } | { type: 'drop'; paths: string[] }

/** Broadcasts of the product, by name. */
export type BackendEvents = {
  vitals: VitalsDto
  modelsChanged: ModelDto[]
  nodesChanged: NodeDto[]
  conversationsChanged: ConversationSummaryDto[]
  settingsChanged: SettingsDto
  programsChanged: ProgramsDto
  viewChanged: ViewKind
  openSettings: null
  /** Model files wait to be taken. */
  filesOpened: null
}

/** Stops a running reply. Safe to call more than once. */
export type Cancel = () => void
export type Unsubscribe = () => void

/** Every call may reject with an {@link ErrorDto}. */
export interface Backend {
  boot(): Promise<BootDto>
  /** Model files opened from the desktop, each told once: looked at as dropped ones are. */
  takeOpenedFiles(): Promise<string[]>

  sendMessage(request: SendMessage, onEvent: (event: ReplyEventDto) => void): Cancel
  /** Lets an answer that is being written go on elsewhere: `here`, or a node's id. Whether it did comes as an event. */
  moveAnswer(messageId: number, placeId: string): Promise<void>
  listConversations(): Promise<ConversationSummaryDto[]>
  openConversation(id: number): Promise<ConversationDto>
  renameConversation(id: number, title: string): Promise<void>
  deleteConversation(id: number): Promise<void>
  setStaysLocal(id: number, staysLocal: boolean): Promise<void>
  saveDraft(conversationId: number | null, text: string): Promise<void>

  /** At most `limit` decisions older than `before`, or the newest; the newest first. */
  listDecisions(before: number | null, limit: number): Promise<DecisionEntryDto[]>
  clearDecisions(): Promise<void>

  inspectFiles(paths: string[]): Promise<VerdictDto[]>
  addModel(path: string, how: AddHow): Promise<ModelDto>
  removeModel(id: string): Promise<void>
  /** Opens the system's file dialog. `null`: the person closed it. */
  chooseModelFile(): Promise<string | null>

  saveSettings(settings: SettingsDto): Promise<SettingsDto>
  addNode(url: string, key: string | null): Promise<NodeDto>
  removeNode(id: string): Promise<void>
  probeNode(id: string): Promise<NodeDto>
  setNodeTrust(id: string, trust: Trust): Promise<void>

  /** Up to an hour of readings, oldest first. */
  vitalsHistory(): Promise<VitalsDto[]>
  /** What this machine was measured to do; `null` until it was, with this system and this version. */
  calibration(): Promise<CalibrationDto | null>
  /** Measures it with the chosen model, which takes seconds. */
  calibrate(): Promise<CalibrationDto>
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
