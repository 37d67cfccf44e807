import { expect, it } from 'vitest'
import { shortcut, type KeyPress } from './shortcuts'

const press = (key: string, more: Partial<KeyPress> = {}): KeyPress => ({ key, code: `Key${key.toUpperCase()}`, metaKey: false, ctrlKey: false, shiftKey: false, altKey: false, ...more })

it('uses ⌘ on a Mac and Ctrl elsewhere', () => {
  expect(shortcut(press('n', { metaKey: true }), 'macos')).toEqual({ type: 'newChat' })
  expect(shortcut(press('n', { ctrlKey: true }), 'macos')).toBeNull()
  expect(shortcut(press('n', { ctrlKey: true }), 'linux')).toEqual({ type: 'newChat' })
})

it('tells ⌘L from ⇧⌘L', () => {
  expect(shortcut(press('l', { metaKey: true }), 'macos')).toEqual({ type: 'pickModel' })
  expect(shortcut(press('L', { metaKey: true, shiftKey: true }), 'macos')).toEqual({ type: 'nextOffload' })
})

it('finds chats by the key, not by what the layout makes of it', () => {
  expect(shortcut(press('"', { metaKey: true, code: 'Digit3' }), 'macos')).toEqual({ type: 'chat', index: 2 })
})

it('leaves plain typing alone', () => {
  expect(shortcut(press('n'), 'macos')).toBeNull()
  expect(shortcut(press('Escape', { code: 'Escape' }), 'linux')).toEqual({ type: 'escape' })
})
