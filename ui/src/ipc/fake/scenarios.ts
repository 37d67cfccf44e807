/**
 * The worlds the fake backend can play: what exists at start, what happens to a question, what a dropped file is.
 * Everything is fixed: the same address shows the same thing each time.
 */

import type { BootDto, CalibrationDto, ConversationDto, DecisionDto, DecisionEntryDto, DecisionKind, ErrorDto, FitDto, MessageDto, ModelDto, NodeDto, SegmentDto, SettingsDto, VerdictDto, VitalsDto } from '../backend'
import { answers } from './texts'

export const gib = 2 ** 30
const mib = 2 ** 20
/** A fixed Thursday afternoon, local time. */
export const now = new Date(2026, 5, 18, 15, 4, 0).getTime()

/** How a question is answered: steps with their time in milliseconds after the step before. */
export type Step =
  | { wait: number; do: 'progress'; phase: 'loading' | 'waiting' | 'prefill'; done: number; total: number }
  | { wait: number; do: 'text'; text: string }
  | { wait: number; do: 'thinking'; text: string }
  | { wait: number; do: 'note'; sentence: string }
  | { wait: number; do: 'move'; decision: DecisionDto; placeId: string; continuation: string; gapMs: number; ended: string }
  | { wait: number; do: 'fail'; error: ErrorDto; goesOn?: boolean }
  | { wait: number; do: 'refuse'; error: ErrorDto }
  | { wait: number; do: 'hold' }

export type Scenario = {
  models: ModelDto[]
  nodes: NodeDto[]
  conversations: ConversationDto[]
  settings: SettingsDto
  draft: string
  platform: BootDto['platform']
  decision: (place: string) => DecisionDto
  decisions: DecisionEntryDto[]
  reply: (question: string, place: string) => Step[]
  vitals: (secondsAgo: number, replying: boolean) => VitalsDto
  verdicts: (paths: string[]) => VerdictDto[]
  chooses: string
  calibration: CalibrationDto | null
  calibrates: () => Promise<CalibrationDto>
}

export function fit(verdict: FitDto['verdict'], contextLen: number, neededGb: number, sentence: string, maxContext: number | null = 40_960): FitDto {
  return {
    verdict,
    contextLen,
    neededBytes: neededGb * gib,
    weightsBytes: neededGb * 0.86 * gib,
    kvCacheBytes: neededGb * 0.1 * gib,
    scratchBytes: neededGb * 0.04 * gib,
    budgetBytes: 11.3 * gib,
    availableBytes: 11.3 * gib,
    maxContext,
    sentence,
  }
}

function model(id: string, name: string, architecture: string, quantization: string, fileGb: number, billions: number, contextLen: number, more: Partial<ModelDto>): ModelDto {
  return {
    id,
    name,
    architecture,
    quantization,
    fileBytes: fileGb * 1e9,
    parameters: billions * 1e9,
    contextLen,
    path: `/Users/kim/Library/Application Support/Tidegate/models/${name.replace(/ /g, '-')}-${quantization}.gguf`,
    origin: 'folder',
    error: null,
    fit: null,
    loaded: false,
    decodeTokensPerSec: null,
    ...more,
  }
}

export const models: ModelDto[] = [
  model('qwen3-8b', 'Qwen3 8B', 'qwen3', 'Q4_K_M', 5.03, 8.2, 40_960, { loaded: true, decodeTokensPerSec: 44, fit: fit('runsWell', 8192, 6.1, 'Fits with 8k context: 6.1 GB needed, 11.3 GB free now.') }),
  model('qwen2.5-coder-0.5b', 'Qwen2.5 Coder 0.5B', 'qwen2', 'Q4_K_M', 0.49, 0.494, 32_768, { decodeTokensPerSec: 210, fit: fit('runsWell', 8192, 0.7, 'Fits with 8k context: 0.7 GB needed, 11.3 GB free now.') }),
  model('qwen3-14b', 'Qwen3 14B', 'qwen3', 'Q4_K_M', 9.0, 14.8, 40_960, { origin: 'added', path: '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf', fit: fit('tight', 8192, 10.4, 'Fits with 8k context, with 0.9 GB to spare.') }),
  model('llama-3.3-70b', 'Llama 3.3 70B Instruct', 'llama', 'Q4_K_M', 42.5, 70.6, 131_072, { fit: fit('tooBig', 8192, 43.9, 'Needs 43.9 GB; 11.3 GB can be had.', null) }),
  model('broken', 'gemma-3-12b-it', 'gemma3', 'Q4_0', 3.1, 0, 0, { error: 'The download stopped at 61 %: fetch it again.', origin: 'added', path: '/Users/kim/Downloads/gemma-3-12b-it-Q4_0.gguf' }),
]

export const nodes: NodeDto[] = [
  { id: 'studio', name: 'studio', url: 'http://studio.local:8080', hasKey: true, trust: 'own', state: 'ready', sentence: null, engine: 'llama.cpp', models: ['qwen3-8b', 'qwen3-32b', 'llama-3.3-70b'], roundTripMs: 4.2, decodeTokensPerSec: 41 },
  { id: 'mini', name: 'mini', url: 'http://10.0.1.12:11434', hasKey: false, trust: 'team', state: 'unreachable', sentence: 'Nothing answers at this address: the machine may be asleep.', engine: 'Ollama', models: ['qwen3:8b'], roundTripMs: null, decodeTokensPerSec: 28 },
]

export const settings: SettingsDto = {
  offload: 'auto',
  model: 'qwen3-8b',
  contextLen: 8192,
  modelsFolder: '/Users/kim/Library/Application Support/Tidegate/models',
  reserveBytes: 2.8 * gib,
  kvType: null,
  maxSwapUsedRatio: 0.2,
  maxSwapInPerSec: 4 * mib,
  maxThermal: 'serious',
  modelsThatStay: [],
  servesPrograms: true,
  leastTrust: 'rented',
  theme: 'system',
  systemPrompt: '',
  temperature: null,
  offerCalibration: true,
}

export const calibration: CalibrationDto = {
  modelName: 'Qwen3 8B',
  bandwidthBytesPerSec: 94e9,
  decodeTokensPerSec: 14.2,
  prefillTokensPerSec: 231,
  reachedRatio: 0.76,
}

const tooLittleMemory: ErrorDto = { code: 'doesNotFit', sentence: 'Measuring takes 64 MB and 12 MB can be used.', hint: 'Close programs that take memory, then measure again.' }
const after = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

export const hereDecision: DecisionDto = {
  target: 'here',
  place: 'Here',
  reason: 'fits',
  sentence: 'fits with 2.4 GB to spare',
  counterfactual: 'Fits with context up to 24k',
  readings: [
    { name: 'Free memory', value: '11.3 GB', limit: '2.8 GB', exceeded: false },
    { name: 'Swap in', value: '0 MB/s', limit: '4 MB/s', exceeded: false },
    { name: 'Heat', value: 'Nominal', limit: 'Serious', exceeded: false },
  ],
  alternatives: [
    { place: 'Here', outcome: '44 tok/s' },
    { place: 'On studio', outcome: '41 tok/s, 4 ms away' },
    { place: 'On mini', outcome: 'not reachable' },
  ],
}

export const nodeDecision: DecisionDto = {
  target: 'node',
  place: 'On studio',
  reason: 'memory',
  sentence: 'here 1.9 GB more would be needed than is free',
  counterfactual: 'Would stay here with context up to 16k',
  readings: [
    { name: 'Free memory', value: '0.9 GB', limit: '2.8 GB', exceeded: true },
    { name: 'Swap in', value: '0 MB/s', limit: '4 MB/s', exceeded: false },
    { name: 'Heat', value: 'Nominal', limit: 'Serious', exceeded: false },
  ],
  alternatives: [
    { place: 'On studio', outcome: '41 tok/s, done in about 9 s' },
    { place: 'Here', outcome: '6 tok/s while swapping, done in about 64 s' },
    { place: 'On mini', outcome: 'not reachable' },
  ],
}

/** Studio took over while this machine began to swap. */
export const moveDecision: DecisionDto = {
  target: 'node',
  place: 'On studio',
  reason: 'swap',
  sentence: 'here swaps in 40.0 MB/s',
  counterfactual: 'Would stay here with swap in up to 4.0 MB/s',
  readings: [
    { name: 'Free memory', value: '0.9 GB', limit: '2.8 GB', exceeded: true },
    { name: 'Swap in', value: '40.0 MB/s', limit: '4.0 MB/s', exceeded: true },
    { name: 'Pressure', value: 'normal', limit: 'below warning', exceeded: false },
    { name: 'Heat', value: 'nominal', limit: 'below serious', exceeded: false },
    { name: 'Speed now', value: '31 tok/s', limit: '37 tok/s', exceeded: true },
  ],
  alternatives: [
    { place: 'Here', outcome: '6.0 tok/s while swapping, done in about 64 s' },
    { place: 'On mini', outcome: 'not reachable' },
  ],
}

/** And was lost: the answer came back. */
export const backDecision: DecisionDto = {
  target: 'here',
  place: 'Here',
  reason: 'failed',
  sentence: 'studio closed the connection',
  counterfactual: null,
  readings: [
    { name: 'Free memory', value: '4.1 GB', limit: '2.8 GB', exceeded: false },
    { name: 'Swap in', value: '1.2 MB/s', limit: '4.0 MB/s', exceeded: false },
    { name: 'Heat', value: 'unknown', limit: 'below serious', exceeded: null },
  ],
  alternatives: [{ place: 'On studio', outcome: 'failed in this answer' }, { place: 'On mini', outcome: 'not reachable' }],
}

let nextId = 1000
export const newId = () => (nextId += 1)

function message(id: number, conversationId: number, role: 'user' | 'assistant', text: string, more: Partial<MessageDto> = {}): MessageDto {
  return { id, conversationId, role, text, thinking: '', state: 'done', error: null, segments: [], decision: null, createdAtMs: now - 60_000, ...more }
}

const hereSegment: SegmentDto = { place: 'Here', model: 'Qwen3 8B', reason: 'fits', sentence: 'fits with 2.4 GB to spare', decodeTokensPerSec: 44.2, ttftMs: 310, completionTokens: 164, startedAtChar: 0, placeId: 'here', thinkingAtChar: 0, continuation: null, gapMs: null, ended: 'finished', decision: hereDecision }
const studioSegment: SegmentDto = { place: 'On studio', model: 'qwen3-8b', reason: 'swap', sentence: 'here swaps in 40.0 MB/s', decodeTokensPerSec: 41, ttftMs: null, completionTokens: 88, startedAtChar: answers.guardSeam, placeId: 'studio', thinkingAtChar: 0, continuation: 'tokens', gapMs: 84, ended: 'finished', decision: moveDecision }

const hour = 3_600_000
export function conversations(): ConversationDto[] {
  const one = (id: number, title: string, staysLocal: boolean, messages: MessageDto[]): ConversationDto => ({ id, title, staysLocal, messages, draft: '' })
  return [
    one(1, 'Borrowing across an await', false, [
      message(11, 1, 'user', "Why can't I hold a MutexGuard across .await here?"),
      message(12, 1, 'assistant', answers.guard, { segments: [{ ...hereSegment, ended: 'handed over' }, studioSegment], decision: hereDecision }),
    ]),
    one(2, 'Swap rate or swap size?', false, [
      message(21, 2, 'user', 'Which of the two says more about a Mac that is running out of memory: how much swap is used, or how fast it is used?'),
      message(22, 2, 'assistant', answers.table, { segments: [hereSegment], decision: hereDecision }),
    ]),
    one(3, 'Contract, clause 7', true, [message(31, 3, 'user', 'Summarise clause 7.'), message(32, 3, 'assistant', answers.short, { segments: [{ ...hereSegment, reason: 'stays_local', sentence: 'this chat stays on this Mac' }], decision: { ...hereDecision, reason: 'stays_local', sentence: 'this chat stays on this Mac' } })]),
    one(4, 'awk one-liner for nginx logs', false, [message(41, 4, 'user', 'awk one-liner: requests per minute from an nginx log'), message(42, 4, 'assistant', answers.awk, { state: 'stopped', segments: [hereSegment], decision: hereDecision })]),
    one(5, 'Reading plan: distributed systems', false, [message(51, 5, 'user', 'A reading plan for distributed systems, please.'), message(52, 5, 'assistant', answers.short, { segments: [hereSegment], decision: hereDecision })]),
  ]
}

/** A hundred and thirty decisions of the last days: the newest are those of the chats above. */
export function decisions(): DecisionEntryDto[] {
  const minute = 60_000
  const one = (id: number, atMs: number, kind: DecisionKind, decision: DecisionDto, more: Partial<DecisionEntryDto> = {}): DecisionEntryDto => {
    const placeId = { here: 'here', node: 'studio', refuse: '' }[decision.target]
    return { id, atMs, kind, askedBy: 'window', conversationId: 1, messageId: 12, model: decision.target === 'refuse' ? '' : 'Qwen3 8B', placeId, decision, ...more }
  }
  const refused: DecisionDto = { ...hereDecision, target: 'refuse', place: 'Nowhere', reason: 'memory', sentence: 'Needs 43.9 GB, 11.3 GB can be used', counterfactual: 'Fits if 32.6 GB more were free' }
  const stays: DecisionDto = { ...hereDecision, reason: 'no_node', sentence: 'no node can go on with it', counterfactual: 'Would move with a node that takes over running answers' }
  const newest = [
    one(0, now - minute, 'move', moveDecision),
    one(0, now - 2 * minute, 'relief', { ...moveDecision, target: 'here', place: 'Here', sentence: 'this machine swaps in 12.0 MB/s, so models that nobody uses were unloaded', counterfactual: null }),
    one(0, now - 2 * minute, 'start', hereDecision),
    one(0, now - 40 * minute, 'start', nodeDecision, { askedBy: 'gateway', conversationId: null, messageId: null, model: 'qwen3-32b' }),
    one(0, now - 2 * hour, 'start', hereDecision, { conversationId: 2, messageId: 22 }),
    one(0, now - 4 * hour, 'start', { ...hereDecision, reason: 'stays_local', sentence: 'this chat stays on this Mac' }, { conversationId: 3, messageId: 32 }),
    one(0, now - 5 * hour, 'refused', refused, { askedBy: 'terminal', conversationId: null, messageId: null }),
    one(0, now - 22 * hour, 'move', backDecision, { askedBy: 'gateway', conversationId: null, messageId: null }),
    one(0, now - 22 * hour, 'lost', { ...nodeDecision, reason: 'chosen', sentence: 'the connection was closed after 212 tokens' }, { askedBy: 'gateway', conversationId: null, messageId: null }),
    one(0, now - 26 * hour, 'stay', stays, { conversationId: 4, messageId: 42 }),
  ]
  const older = Array.from({ length: 120 }, (_, index) => one(0, now - (30 + index * 0.7) * hour, 'start', index % 7 === 3 ? nodeDecision : hereDecision, { askedBy: 'gateway', conversationId: null, messageId: null }))
  return [...newest, ...older].map((entry, index, all) => ({ ...entry, id: all.length - index }))
}

export const updatedAt: Record<number, number> = { 1: now - 60_000, 2: now - 2 * hour, 3: now - 4 * hour, 4: now - 26 * hour, 5: now - 30 * hour }

/** A smooth, repeatable wobble between -1 and 1. */
const wave = (at: number, period: number) => Math.sin((at / period) * Math.PI * 2) * 0.7 + Math.sin((at / period) * 5.1 + 1) * 0.3

export function vitals(secondsAgo: number, replying: boolean, more: Partial<VitalsDto> = {}): VitalsDto {
  const at = 600 - secondsAgo
  const answering = replying || (secondsAgo > 14 && secondsAgo < 46)
  return {
    atMs: now - secondsAgo * 1000,
    memory: { totalBytes: 24 * gib, usedBytes: (12.7 + wave(at, 50) * 0.12) * gib, wiredBytes: 2.6 * gib, compressedBytes: 0.9 * gib, availableBytes: (11.3 - wave(at, 50) * 0.12) * gib, limitBytes: null },
    swap: { totalBytes: 2 * gib, usedBytes: 0.3 * gib, inPerSec: secondsAgo === 22 ? 1.1 * mib : 0, outPerSec: 0 },
    pressure: 'normal',
    thermal: 'nominal',
    thermalPressure: 'nominal',
    temperatureCelsius: 52 + wave(at, 90) * 3,
    cpuBusyRatio: 0.18 + (answering ? 0.24 : 0) + wave(at, 17) * 0.05,
    gpuBusyRatio: answering ? 0.92 : 0.04,
    onBattery: false,
    lowPowerMode: false,
    ownFootprintBytes: 6.2 * gib,
    weightsBytes: 4.7 * gib,
    kvCacheBytes: 1.1 * gib,
    givenBackBytes: null,
    decodeTokensPerSec: answering ? 43 + wave(at, 23) * 2 : null,
    baselineTokensPerSec: 44,
    unavailable: [],
    ...more,
  }
}

/** Text in pieces of a few letters, as tokens come. */
function stream(text: string, perStepMs: number, letters = 4): Step[] {
  const steps: Step[] = []
  for (let at = 0; at < text.length; at += letters) steps.push({ wait: perStepMs, do: 'text', text: text.slice(at, at + letters) })
  return steps
}

const start: Step[] = [
  { wait: 60, do: 'progress', phase: 'prefill', done: 0, total: 620 },
  { wait: 120, do: 'progress', phase: 'prefill', done: 420, total: 620 },
]

/** An answer that begins here and moves in the middle of its first sentence. */
const moving = (rest: () => Step[]): Step[] => [
  ...start,
  ...stream(answers.guard.slice(0, answers.guardMove), 8),
  { wait: 10, do: 'note', sentence: 'This machine swaps in 12.0 MB/s, so models that nobody uses were unloaded.' },
  { wait: 40, do: 'move', decision: moveDecision, placeId: 'studio', continuation: 'tokens', gapMs: 84, ended: 'handed over' },
  ...rest(),
]

function dropped(verdict: FitDto['verdict']): (paths: string[]) => VerdictDto[] {
  const cases: Record<string, () => VerdictDto> = {
    runsWell: () => ({
      kind: 'model',
      model: model('dropped', 'Qwen3 4B', 'qwen3', 'Q4_K_M', 2.5, 4.0, 40_960, { path: '/Users/kim/Downloads/Qwen3-4B-Q4_K_M.gguf', decodeTokensPerSec: 78, fit: fit('runsWell', 8192, 3.4, 'Runs well: 3.4 GB with 8k context, 11.3 GB free now.') }),
      fits: [fit('runsWell', 4096, 3.0, ''), fit('runsWell', 8192, 3.4, ''), fit('runsWell', 32_768, 6.9, '')],
      nodesThatCould: ['studio'],
      alreadyListed: false,
      license: 'apache-2.0',
      hasChatTemplate: true,
      elapsedMs: 21,
    }),
    tight: () => ({
      kind: 'model',
      model: model('dropped', 'Qwen3 14B', 'qwen3', 'Q4_K_M', 9.0, 14.8, 40_960, { path: '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf', decodeTokensPerSec: 27, fit: fit('tight', 8192, 10.4, 'Fits with 8k context, with 0.9 GB to spare.', 12_288) }),
      fits: [fit('tight', 4096, 9.8, ''), fit('tight', 8192, 10.4, ''), fit('tooBig', 32_768, 14.1, '')],
      nodesThatCould: ['studio'],
      alreadyListed: false,
      license: 'apache-2.0',
      hasChatTemplate: true,
      elapsedMs: 24,
    }),
    tooBig: () => ({
      kind: 'model',
      model: model('dropped', 'Llama 3.3 70B Instruct', 'llama', 'Q4_K_M', 42.5, 70.6, 131_072, { path: '/Users/kim/Downloads/Llama-3.3-70B-Instruct-Q4_K_M.gguf', fit: fit('tooBig', 8192, 43.9, 'Needs 43.9 GB; 11.3 GB can be had here.', null) }),
      fits: [fit('tooBig', 4096, 42.6, '', null), fit('tooBig', 8192, 43.9, '', null), fit('tooBig', 32_768, 51.6, '', null)],
      nodesThatCould: ['studio'],
      alreadyListed: false,
      license: 'llama3.3',
      hasChatTemplate: true,
      elapsedMs: 31,
    }),
  }
  return (paths) => paths.map(() => (cases[verdict] ?? cases.runsWell)!())
}

const broken = (path: string): VerdictDto => ({
  kind: 'refused',
  title: 'The file is cut off',
  sentence: 'It ends at byte 3,081,240,576, in the middle of the weights: 61 % of what its header promises.',
  hint: 'The download stopped early. Fetch it again, or let the browser resume it.',
  path,
})

const notAModel = (path: string): VerdictDto => ({
  kind: 'refused',
  title: 'Not a model file',
  sentence: 'It starts with %PDF; a GGUF file starts with GGUF.',
  hint: 'Models for Tidegate end in .gguf.',
  path,
})

const nodeGone: ErrorDto = { code: 'cutOff', sentence: 'studio went away in the middle of the answer.', hint: 'What had arrived is kept. Its connection closed after 212 tokens.' }

/** Changes to the usual world, by the name in the address. */
const changes: Record<string, (usual: Scenario) => Partial<Scenario>> = {
  ready: () => ({}),
  'no-model': (usual) => ({ models: [], nodes: [], conversations: [], settings: { ...usual.settings, model: null }, vitals: (at) => vitals(at, false, { weightsBytes: 0, kvCacheBytes: 0, decodeTokensPerSec: null, baselineTokensPerSec: null }) }),
  first: () => ({ conversations: [], calibration: null }),
  measuring: () => ({ calibration: null, calibrates: () => new Promise(() => {}) }),
  'measure-fails': () => {
    let tries = 0
    return {
      calibration: null,
      calibrates: async () => {
        await after(50)
        if ((tries += 1) === 1) throw tooLittleMemory
        return calibration
      },
    }
  },
  streaming: () => ({ reply: () => [...start, ...stream(answers.guard.slice(0, 620), 12), { wait: 0, do: 'hold' }] }),
  slow: () => ({ reply: () => [...start, ...stream(answers.guard, 40)] }),
  long: () => ({ reply: () => [...start, ...stream(answers.long, 4, 40)] }),
  loading: () => ({ reply: () => [{ wait: 30, do: 'progress', phase: 'loading', done: 3.1e9, total: 5.03e9 }, { wait: 0, do: 'hold' }] }),
  reading: () => ({ reply: () => [{ wait: 30, do: 'progress', phase: 'prefill', done: 2480, total: 6200 }, { wait: 0, do: 'hold' }] }),
  waiting: (usual) => ({ decision: () => nodeDecision, settings: { ...usual.settings, offload: 'remote' }, reply: () => [{ wait: 30, do: 'progress', phase: 'waiting', done: 0, total: 2 }, { wait: 0, do: 'hold' }] }),
  /** Moves in the middle of a sentence; then writes on. */
  move: () => ({ reply: () => moving(() => [...stream(answers.guard.slice(answers.guardMove), 8)]) }),
  moving: () => ({ reply: () => moving(() => [...stream(answers.guard.slice(answers.guardMove, answers.guardMove + 90), 8), { wait: 0, do: 'hold' }]) }),
  /** The node is lost in the middle of code, and the answer comes back. */
  'move-back': () => ({
    reply: () =>
      moving(() => [
        ...stream(answers.guard.slice(answers.guardMove, answers.guardCode), 8),
        { wait: 40, do: 'move', decision: backDecision, placeId: 'here', continuation: 'text', gapMs: 1240, ended: 'studio closed the connection' },
        ...stream(answers.guard.slice(answers.guardCode), 8),
      ]),
  }),
  'history-empty': () => ({ decisions: [] }),
  remote: (usual) => ({ decision: () => nodeDecision, settings: { ...usual.settings, offload: 'remote' } }),
  'node-gone': (usual) => ({
    settings: { ...usual.settings, offload: 'remote' },
    decision: (place) => (place === 'here' ? hereDecision : nodeDecision),
    reply: (_, place) => (place === 'here' ? [...start, ...stream(answers.short, 10)] : [...stream(answers.guard.slice(0, 460), 8), { wait: 40, do: 'fail', error: nodeGone }]),
  }),
  'node-refused': (usual) => ({
    settings: { ...usual.settings, offload: 'remote' },
    reply: (_, place) => (place === 'here' ? [...start, ...stream(answers.short, 10)] : [{ wait: 30, do: 'refuse', error: { code: 'nodeUnreachable', sentence: 'studio does not answer, and there is no other node.', hint: 'It last answered two minutes ago. Your question is still below.' } }]),
  }),
  'engine-failed': () => ({ reply: () => [...start, ...stream(answers.guard.slice(0, 180), 8), { wait: 40, do: 'fail', error: { code: 'engineFailed', sentence: 'The engine stopped while it was writing.', hint: 'The chat is intact. The engine has been started again.' } }] }),
  'disk-full': () => ({ reply: () => [...start, ...stream(answers.short.slice(0, 60), 8), { wait: 10, do: 'fail', goesOn: true, error: { code: 'diskFull', sentence: 'The disk is full, so this chat goes on in memory.', hint: 'It is saved as soon as there is room again; Tidegate keeps trying.' } }, ...stream(answers.short.slice(60), 8)] }),
  'no-node': () => ({ nodes: [] }),
  refused: () => ({
    reply: () => [{ wait: 30, do: 'refuse', error: { code: 'doesNotFit', sentence: 'Not answered: 43.9 GB would be needed and 11.3 GB can be had.', hint: 'It would fit in a smaller quantization, or on a node.' } }],
  }),
  'drop-well': () => ({ verdicts: dropped('runsWell') }),
  'drop-tight': () => ({ verdicts: dropped('tight'), chooses: '/Users/kim/Downloads/Qwen3-14B-Q4_K_M.gguf' }),
  'drop-too-big': () => ({ verdicts: dropped('tooBig') }),
  'drop-broken': () => ({ verdicts: (paths) => paths.map(broken) }),
  'drop-several': () => ({
    verdicts: ([one = '', two = '', three = '', four = '']) => [...dropped('runsWell')([one]), ...dropped('tooBig')([two]).map((each) => (each.kind === 'model' ? { ...each, model: { ...each.model, path: two } } : each)), broken(three), notAModel(four)],
  }),
  'drop-slow': () => ({ verdicts: dropped('tight') }),
  swapping: () => ({
    vitals: (at, replying) =>
      vitals(at, replying, {
        memory: { totalBytes: 24 * gib, usedBytes: 22.9 * gib, wiredBytes: 3.4 * gib, compressedBytes: 4.2 * gib, availableBytes: 1.1 * gib, limitBytes: null },
        swap: { totalBytes: 8 * gib, usedBytes: 5.8 * gib, inPerSec: at < 24 ? (31 + wave(at, 9) * 9) * mib : 0, outPerSec: at < 24 ? 9 * mib : 0 },
        pressure: 'critical',
        thermal: 'serious',
        thermalPressure: 'heavy',
        temperatureCelsius: 96,
        cpuBusyRatio: 0.94,
        decodeTokensPerSec: at < 40 ? 11 + wave(at, 11) : 43,
      }),
  }),
  unknown: () => ({
    platform: 'linux' as const,
    vitals: (at) => ({
      ...vitals(at, false),
      memory: at === 0 ? vitals(at, false).memory : vitals(at, false).memory,
      swap: null,
      pressure: null,
      thermal: null,
      thermalPressure: null,
      temperatureCelsius: null,
      cpuBusyRatio: null,
      decodeTokensPerSec: null,
      baselineTokensPerSec: null,
      weightsBytes: 0,
      kvCacheBytes: 0,
      unavailable: [
        { reading: 'swap', why: '/proc/vmstat cannot be read in this container' },
        { reading: 'thermal', why: 'this machine has no thermal zone' },
        { reading: 'cpu', why: 'the first reading has nothing to be compared to' },
      ],
    }),
  }),
  japanese: (usual) => ({
    conversations: usual.conversations.map((each) => (each.id === 1 ? { ...each, title: '非同期処理とミューテックスの借用について', messages: each.messages.map((one) => ({ ...one, text: one.role === 'user' ? 'なぜここで .await をまたいで MutexGuard を保持できないのですか。' : answers.japanese, segments: one.segments.slice(0, 1) })) } : each)),
  }),
  german: (usual) => ({
    conversations: usual.conversations.map((each) => (each.id === 1 ? { ...each, title: 'Speicherauslagerungsgeschwindigkeit und Arbeitsspeicherverwaltung', messages: each.messages.map((one) => ({ ...one, text: one.role === 'user' ? 'Warum darf ich einen MutexGuard nicht über ein .await hinweg halten?' : answers.german, segments: one.segments.slice(0, 1) })) } : each)),
    models: usual.models.map((each, index) => (index === 0 ? { ...each, name: 'Arbeitsspeicherverwaltungsmodell 8B' } : each)),
  }),
}

export const scenarioNames = Object.keys(changes)

export function scenario(name: string): Scenario {
  const usual: Scenario = {
    models,
    nodes,
    conversations: conversations(),
    settings,
    draft: '',
    platform: 'macos',
    decision: () => hereDecision,
    decisions: decisions(),
    reply: (question) => [...start, ...stream(question.length % 2 === 0 ? answers.guard : answers.short, 10)],
    vitals: (secondsAgo, replying) => vitals(secondsAgo, replying),
    verdicts: dropped('runsWell'),
    chooses: '/Users/kim/Downloads/Qwen3-4B-Q4_K_M.gguf',
    calibration,
    calibrates: () => after(300).then(() => calibration),
  }
  return { ...usual, ...changes[name]?.(usual) }
}
