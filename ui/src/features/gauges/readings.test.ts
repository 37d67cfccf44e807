import { describe, expect, it } from 'vitest'
import type { SettingsDto, VitalsDto } from '../../ipc/backend'
import { announcement, heatGauge, memoryGauge, memoryParts, noVitals, perSecond, reduceVitals, speedGauge, swapGauge } from './readings'

const gib = 2 ** 30
const mib = 2 ** 20
const settings = { reserveBytes: 2 * gib, maxSwapUsedRatio: 0.2, maxSwapInPerSec: 4 * mib, maxThermal: 'serious' } as SettingsDto

function vitals(more: Partial<VitalsDto> = {}): VitalsDto {
  return {
    atMs: 0,
    memory: { totalBytes: 24 * gib, usedBytes: 12 * gib, wiredBytes: 2 * gib, compressedBytes: 1 * gib, availableBytes: 11 * gib, limitBytes: null },
    swap: { totalBytes: 2 * gib, usedBytes: 0, inPerSec: 0, outPerSec: 0 },
    pressure: 'normal',
    thermal: 'nominal',
    thermalPressure: null,
    temperatureCelsius: null,
    cpuBusyRatio: 0.2,
    gpuBusyRatio: null,
    onBattery: null,
    lowPowerMode: null,
    ownFootprintBytes: null,
    weightsBytes: 4 * gib,
    kvCacheBytes: 1 * gib,
    givenBackBytes: null,
    decodeTokensPerSec: null,
    baselineTokensPerSec: null,
    unavailable: [],
    ...more,
  }
}

describe('unknown is not zero', () => {
  const none = vitals({ memory: null, swap: null, pressure: null, thermal: null, unavailable: [{ reading: 'swap', why: 'no /proc/vmstat' }] })
  it('has no value, and says why', () => {
    expect(memoryGauge(none, settings).value).toBeNull()
    expect(heatGauge(none, settings).value).toBeNull()
    expect(swapGauge(none, settings)).toMatchObject({ value: null, about: 'Not known: no /proc/vmstat' })
    expect(memoryParts(none)).toEqual([])
  })
  it('a rate after one reading is unknown, the amount is not', () => {
    const once = vitals({ swap: { totalBytes: gib, usedBytes: gib / 2, inPerSec: null, outPerSec: null } })
    expect(swapGauge(once, settings)).toMatchObject({ value: null, aside: '512 MB used' })
  })
  it('speed without an answer is unknown', () => expect(speedGauge(vitals()).value).toBeNull())
})

it('memory is split so that the parts make up what is used', () => {
  const parts = memoryParts(vitals())
  expect(parts.map(({ kind, ratio }) => [kind, Math.round(ratio * 24)])).toEqual([['apps', 4], ['wired', 2], ['compressed', 1], ['weights', 4], ['cache', 1]])
})

it('a container has its own limit', () => {
  const small = vitals({ memory: { totalBytes: 24 * gib, usedBytes: 3 * gib, wiredBytes: null, compressedBytes: null, availableBytes: 5 * gib, limitBytes: 8 * gib } })
  expect(memoryGauge(small, settings).unit).toBe('of 8 GB')
})

it('tells what an unload gave back, until something is loaded again', () => {
  const told = /gave back 2.5 GB/
  expect(memoryGauge(vitals({ weightsBytes: 0, givenBackBytes: 2.5 * gib }), settings).about).toMatch(told)
  expect(memoryGauge(vitals({ givenBackBytes: 2.5 * gib }), settings).about).not.toMatch(told)
})

it('status follows the policy', () => {
  const memory = vitals().memory!
  expect(memoryGauge(vitals({ memory: { ...memory, availableBytes: gib } }), settings).status).toBe('near')
  expect(memoryGauge(vitals({ pressure: 'critical' }), settings).status).toBe('critical')
  expect(swapGauge(vitals({ swap: { totalBytes: 8 * gib, usedBytes: 0, inPerSec: 5 * mib, outPerSec: 0 } }), settings).status).toBe('critical')
  expect(swapGauge(vitals({ swap: { totalBytes: 8 * gib, usedBytes: 6 * gib, inPerSec: 0, outPerSec: 0 } }), settings).status).toBe('near')
  expect(heatGauge(vitals({ thermal: 'fair' }), { ...settings, maxThermal: 'fair' }).status).toBe('near')
  expect(speedGauge(vitals({ decodeTokensPerSec: 30, baselineTokensPerSec: 44 })).status).toBe('near')
})

it('pressure stands in for heat where heat is not known', () => {
  expect(heatGauge(vitals({ thermal: null, pressure: 'warning' }), settings)).toMatchObject({ label: 'Pressure', value: 'Warning', status: 'near' })
})

it('keeps one minute, in steps of a second, with gaps where nothing is known', () => {
  let state = noVitals
  for (let second = 0; second <= 90; second += 1) state = reduceVitals(state, vitals({ atMs: second * 1000, cpuBusyRatio: second === 80 ? null : second / 100 }))
  const values = perSecond(state, (snapshot) => snapshot.cpuBusyRatio)
  expect(values).toHaveLength(61)
  expect(values[60]).toBe(0.9)
  expect(values[0]).toBe(0.3)
  expect(values[50]).toBeNull()
  expect(reduceVitals(state, vitals({ atMs: 1000 }))).toBe(state)
})

it('draws through the five seconds between readings while hidden', () => {
  const state = [0, 5000].reduce((each, atMs) => reduceVitals(each, vitals({ atMs, cpuBusyRatio: atMs / 10_000 })), noVitals)
  expect(perSecond(state, (snapshot) => snapshot.cpuBusyRatio, 5)).toEqual([0, 0.1, 0.2, 0.3, 0.4, 0.5])
})

it('tells a screen reader of changes of state alone', () => {
  const calm = { Memory: memoryGauge(vitals(), settings) }
  const more = { Memory: memoryGauge(vitals({ memory: { ...vitals().memory!, usedBytes: 13 * gib } }), settings) }
  const near = { Memory: memoryGauge(vitals({ pressure: 'warning' }), settings) }
  expect(announcement({}, calm)).toBe('')
  expect(announcement(calm, more)).toBe('')
  expect(announcement(more, near)).toBe('Memory: near')
})
