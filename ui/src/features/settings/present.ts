/** The present reading beside each limit of the policy. Pure. */

import type { SettingsDto, VitalsDto } from '../../ipc/backend'
import { thermalWords } from '../../ipc/words'
import { megabytesPerSec, memory, percent } from '../../primitives/format'

type Reading = { text: string; over: boolean }

const none: Reading = { text: 'not known now', over: false }
const order = ['nominal', 'fair', 'serious', 'critical']

export function present(vitals: VitalsDto | null, settings: SettingsDto): Record<'memory' | 'swapUsed' | 'swapIn' | 'heat', Reading> {
  const { memory: ram, swap, thermal } = vitals ?? { memory: null, swap: null, thermal: null }
  return {
    memory: ram ? { text: `${memory(ram.availableBytes)} free now`, over: ram.availableBytes < settings.reserveBytes } : none,
    swapUsed:
      ram && swap && ram.totalBytes > 0
        ? { text: `${percent(swap.usedBytes / ram.totalBytes)} now`, over: swap.usedBytes > settings.maxSwapUsedRatio * ram.totalBytes }
        : none,
    swapIn: swap && swap.inPerSec !== null ? { text: `${megabytesPerSec(swap.inPerSec)} MB/s now`, over: swap.inPerSec > settings.maxSwapInPerSec } : none,
    heat: thermal ? { text: `${thermalWords[thermal].word} now`, over: order.indexOf(thermal) >= order.indexOf(settings.maxThermal) } : none,
  }
}

/** The usual lengths, with the one in use among them. */
export function contextChoices(current: number): number[] {
  const usual = [2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072]
  return [...new Set([...usual, current])].sort((one, other) => one - other)
}
