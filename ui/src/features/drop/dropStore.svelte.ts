import { toError, type AddHow, type Backend, type ModelDto, type Unsubscribe } from '../../ipc/backend'
import { reduce, type DropEvent, type DropState } from './reduce'

export class DropStore {
  state = $state.raw<DropState>({ step: 'idle' })
  readonly #backend: Backend
  readonly #onAdded: (model: ModelDto) => void

  constructor(backend: Backend, onAdded: (model: ModelDto) => void) {
    this.#backend = backend
    this.#onAdded = onAdded
  }

  #apply(event: DropEvent) {
    this.state = reduce(this.state, event)
  }

  start(): Unsubscribe {
    return this.#backend.onFileDrag((drag) => {
      if (drag.type === 'leave') return this.#apply({ type: 'left' })
      if (drag.paths.length === 0) return
      if (drag.type === 'enter') {
        this.#apply({ type: 'entered', paths: drag.paths })
        void this.#inspect(drag.paths)
      } else {
        this.inspect(drag.paths)
      }
    })
  }

  /** Looks at files as if they had been dropped. */
  inspect(paths: string[]) {
    this.#apply({ type: 'dropped', paths })
    if (this.state.step === 'inspecting') void this.#inspect(paths)
  }

  /** Asks for a file and looks at it. */
  async choose() {
    try {
      const path = await this.#backend.chooseModelFile()
      if (path !== null) this.inspect([path])
    } catch (thrown) {
      console.error('no file dialog', thrown)
    }
  }

  async #inspect(paths: string[]) {
    try {
      this.#apply({ type: 'inspected', paths, verdicts: await this.#backend.inspectFiles(paths) })
    } catch (thrown) {
      this.#apply({ type: 'inspectFailed', paths, error: toError(thrown) })
    }
  }

  chooseHow(how: AddHow) {
    this.#apply({ type: 'howChosen', how })
  }

  async add(path: string) {
    if (this.state.step !== 'judged' || this.state.adding !== null) return
    const { how } = this.state
    this.#apply({ type: 'adding', path })
    try {
      const model = await this.#backend.addModel(path, how)
      this.#apply({ type: 'added', path })
      this.#onAdded(model)
    } catch (thrown) {
      this.#apply({ type: 'addFailed', error: toError(thrown) })
    }
  }

  close() {
    this.#apply({ type: 'closed' })
  }
}
