type Box = { left: number; right: number; top: number; bottom: number }
type Size = { width: number; height: number }

const gap = 6
const edge = 8

/** Where a surface goes beside its anchor: on the side with more room, inside the window. Pixels. */
export function place(
  anchor: Box,
  surface: Size,
  view: Size,
  align: 'start' | 'end',
): { left: number; top: number; maxHeight: number } {
  const above = anchor.top - gap - edge
  const below = view.height - anchor.bottom - gap - edge
  const upward = below < surface.height && above > below
  const maxHeight = Math.max(0, upward ? above : below)
  const height = Math.min(surface.height, maxHeight)
  const wanted = align === 'start' ? anchor.left : anchor.right - surface.width
  const left = Math.max(edge, Math.min(wanted, view.width - surface.width - edge))
  return { left, top: upward ? anchor.top - gap - height : anchor.bottom + gap, maxHeight }
}
