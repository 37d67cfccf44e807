import { toError, type Backend, type Cancel, type ConversationDto, type ReplyEventDto } from '../../ipc/backend'
import { emptyChat, reduce, type ChatEvent, type ChatState } from './reduce'

const draftDelayMs = 400

/** One chat: its state, what is typed into it, and the reply that may be running. */
export class Chat {
  state = $state.raw<ChatState>(emptyChat)
  draft = $state('')
  cancel: Cancel | null = null
  /** Text that has arrived and waits for the next frame. */
  #arrived = ''
  #frame = 0

  apply(event: ChatEvent) {
    this.state = reduce(this.state, event)
  }

  /** Takes a reply's events in order; text is put on screen once a frame, and not at all while nobody can see it. */
  take(event: ReplyEventDto) {
    if (event.type === 'text') {
      this.#arrived += event.text
      if (this.#frame === 0 && !document.hidden) this.#frame = requestAnimationFrame(() => this.flush())
      return
    }
    this.flush()
    this.apply({ type: 'reply', event })
  }

  flush() {
    cancelAnimationFrame(this.#frame)
    this.#frame = 0
    if (this.#arrived === '') return
    const text = this.#arrived
    this.#arrived = ''
    this.apply({ type: 'reply', event: { type: 'text', text } })
  }
}

/** The chat in view, and those whose replies go on while another is in view. */
export class ChatStore {
  current = $state.raw(new Chat())
  #replying: Chat[] = []
  #newDraft = ''
  #saveTimer: ReturnType<typeof setTimeout> | undefined
  readonly #backend: Backend
  readonly #now: () => number

  constructor(backend: Backend, now: () => number = Date.now) {
    this.#backend = backend
    this.#now = now
  }

  /** What was typed and not sent when the app was last open. */
  restoreDraft(text: string) {
    this.#newDraft = text
    if (this.current.state.conversationId === null) this.current.draft = text
  }

  startNew() {
    if (this.current.state.conversationId === null && !this.current.state.reply) return
    this.saveDraftNow()
    const chat = new Chat()
    chat.draft = this.#newDraft
    this.current = chat
  }

  async open(id: number) {
    if (this.current.state.conversationId === id) return
    this.saveDraftNow()
    const running = this.#replying.find((chat) => chat.state.conversationId === id)
    if (running) {
      this.current = running
      return
    }
    try {
      this.show(await this.#backend.openConversation(id))
    } catch (thrown) {
      this.current.apply({ type: 'noticed', error: toError(thrown) })
    }
  }

  show(conversation: ConversationDto) {
    const chat = new Chat()
    chat.apply({ type: 'opened', conversation })
    chat.draft = conversation.draft
    this.current = chat
  }

  /** Sends what is typed. The text stays in the saved draft until the product has accepted it. */
  send(text: string, model: string | null, place: string) {
    const chat = this.current
    if (chat.state.reply || text.trim() === '') return
    clearTimeout(this.#saveTimer)
    if (chat.state.conversationId === null) this.#newDraft = text
    chat.draft = ''
    this.#ask(chat, text, model, place)
  }

  /** Answers the last question again. */
  retry(model: string | null, place: string) {
    const chat = this.current
    if (chat.state.reply || chat.state.conversationId === null) return
    this.#ask(chat, null, model, place)
  }

  #ask(chat: Chat, text: string | null, model: string | null, place: string) {
    const wasNew = chat.state.conversationId === null
    const { conversationId } = chat.state
    chat.apply({ type: 'sent', text, atMs: this.#now() })
    this.#replying.push(chat)
    chat.cancel = this.#backend.sendMessage({ conversationId, text, model, place }, (event) => {
      chat.take(event)
      if (event.type === 'accepted' && text !== null) {
        if (wasNew) this.#newDraft = ''
        this.#save(wasNew ? null : event.conversationId, '')
      }
      if (chat.state.reply === null) this.#ended(chat)
    })
  }

  #ended(chat: Chat) {
    this.#replying = this.#replying.filter((each) => each !== chat)
    chat.cancel = null
    if (chat.state.returned === null) return
    // The question was not accepted: it goes back to where it was typed, before what was typed since.
    chat.draft = chat.draft.trim() === '' ? chat.state.returned : `${chat.state.returned}\n\n${chat.draft}`
    chat.apply({ type: 'returnedTaken' })
    this.#save(chat.state.conversationId, chat.draft)
  }

  stop() {
    const chat = this.current
    if (!chat.state.reply || chat.state.reply.stopping) return
    chat.apply({ type: 'stopRequested' })
    chat.cancel?.()
  }

  type(text: string) {
    const chat = this.current
    chat.draft = text
    if (chat.state.conversationId === null) this.#newDraft = text
    clearTimeout(this.#saveTimer)
    this.#saveTimer = setTimeout(() => this.saveDraftNow(), draftDelayMs)
  }

  saveDraftNow() {
    if (this.#saveTimer === undefined) return
    clearTimeout(this.#saveTimer)
    this.#saveTimer = undefined
    this.#save(this.current.state.conversationId, this.current.draft)
  }

  #save(conversationId: number | null, text: string) {
    this.#backend.saveDraft(conversationId, text).catch((thrown: unknown) => {
      this.current.apply({ type: 'noticed', error: toError(thrown) })
    })
  }

  /** A chat was removed: if it is in view, an empty one takes its place. */
  forget(id: number) {
    if (this.current.state.conversationId !== id) return
    this.current.cancel?.()
    const chat = new Chat()
    chat.draft = this.#newDraft
    this.current = chat
  }

  /** The window can be seen again: what arrived meanwhile is shown. */
  becameVisible() {
    for (const chat of this.#replying) chat.flush()
  }
}
