import type { Backend, Unsubscribe } from '../../ipc/backend'
import { noVitals, reduceVitals, type VitalsState } from './readings'

/** The minute the gauges show. Nothing is taken in while nobody can see it; the gap is fetched when they can. */
export class VitalsStore {
  state = $state.raw<VitalsState>(noVitals)
  readonly #backend: Backend

  constructor(backend: Backend) {
    this.#backend = backend
  }

  start(): Unsubscribe {
    void this.refresh()
    return this.#backend.on('vitals', (snapshot) => {
      if (!document.hidden) this.state = reduceVitals(this.state, snapshot)
    })
  }

  async refresh() {
    try {
      const history = await this.#backend.vitalsHistory()
      this.state = history.reduce(reduceVitals, noVitals)
    } catch (thrown) {
      console.error('no history of readings', thrown)
    }
  }
}
