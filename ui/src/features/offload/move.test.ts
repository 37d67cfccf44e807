import { expect, it } from 'vitest'
import type { NodeDto } from '../../ipc/backend'
import { movePlaces } from './move'

const node = (id: string, more: Partial<NodeDto> = {}) => ({ id, name: id, state: 'ready', trust: 'own', decodeTokensPerSec: 41, ...more }) as NodeDto

it('offers every place but the one where the answer is', () => {
  const nodes = [node('studio'), node('mini', { state: 'unreachable' }), node('gpu', { trust: 'rented' })]
  expect(movePlaces('Here', nodes, 'team')).toEqual([
    { id: 'studio', name: 'studio', detail: '41 tok/s', disabled: false },
    { id: 'mini', name: 'mini', detail: 'not reachable', disabled: true },
    { id: 'gpu', name: 'gpu', detail: 'rented: chats may not go there', disabled: true },
  ])
  expect(movePlaces('On studio', nodes, 'rented').map(({ id, disabled }) => [id, disabled])).toEqual([['here', false], ['mini', true], ['gpu', false]])
})
