/** The keyboard. Pure: a key press in, what it asks for out. */

export type Action =
  | { type: 'newChat' | 'pickModel' | 'nextOffload' | 'chooseFile' | 'decision' | 'settings' | 'close' | 'escape' | 'toggleView' }
  | { type: 'chat'; index: number }

export type KeyPress = { key: string; code: string; metaKey: boolean; ctrlKey: boolean; shiftKey: boolean; altKey: boolean }

/** `platform` decides which key is the command key: ⌘ on a Mac, Ctrl elsewhere. */
export function shortcut(press: KeyPress, platform: 'macos' | 'linux'): Action | null {
  if (press.key === 'Escape') return { type: 'escape' }
  const command = platform === 'macos' ? press.metaKey && !press.ctrlKey : press.ctrlKey && !press.metaKey
  if (!command || press.altKey) return null
  // The digits' key codes stay the same where Shift or the layout turns them into signs.
  const digit = /^Digit([1-9])$/.exec(press.code)?.[1]
  if (digit !== undefined && !press.shiftKey) return { type: 'chat', index: Number(digit) - 1 }
  const key = press.key.toLowerCase()
  if (press.shiftKey) {
    if (key === 'l') return { type: 'nextOffload' }
    if (key === 'o') return { type: 'toggleView' }
    return null
  }
  switch (key) {
    case 'n':
      return { type: 'newChat' }
    case 'l':
      return { type: 'pickModel' }
    case 'd':
      return { type: 'chooseFile' }
    case 'i':
      return { type: 'decision' }
    case ',':
      return { type: 'settings' }
    case 'w':
      return { type: 'close' }
    default:
      return null
  }
}

/** "⌘N" or "Ctrl N", for tooltips. */
export function keyName(keys: string, platform: 'macos' | 'linux'): string {
  return platform === 'macos' ? keys : keys.replace('⌘', 'Ctrl ').replace('⇧', 'Shift ')
}
