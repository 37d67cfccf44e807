/** What this machine was measured to do, and the measurement that runs. It goes on while other pages are open. */

import { toError, type Backend, type CalibrationDto, type ErrorDto } from '../../ipc/backend'

export class CalibrationStore {
  readonly #backend: Backend
  /** Whether `measured` is known yet. */
  known = $state(false)
  measured = $state.raw<CalibrationDto | null>(null)
  running = $state(false)
  /** Since the measurement began. */
  seconds = $state(0)
  error = $state.raw<ErrorDto | null>(null)
  /** The offer was taken: it stays in view until its outcome has been seen. */
  taken = $state(false)

  constructor(backend: Backend) {
    this.#backend = backend
  }

  async start() {
    this.measured = await this.#backend.calibration()
    this.known = true
  }

  async measure() {
    if (this.running) return
    this.running = true
    this.seconds = 0
    this.error = null
    const clock = setInterval(() => (this.seconds += 1), 1000)
    try {
      this.measured = await this.#backend.calibrate()
      this.known = true
    } catch (thrown) {
      this.error = toError(thrown)
    } finally {
      clearInterval(clock)
      this.running = false
    }
  }
}
