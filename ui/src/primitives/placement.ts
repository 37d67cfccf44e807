type Box = { left: number; right: number; top: number; bottom: number }
type Size = { width: number; height: number }

const gap = 6
const edge = 8

/**
 * Where a surface goes beside its anchor: on the side with more room, inside the window. One that fits on neither side
 * reaches over the anchor, rather than hide its end. Pixels.
 */
export function place(
  anchor: Box,
  surface: Size,
  view: Size,
  align: 'start' | 'end',
): { left: number; top: number; maxHeight: number } {
  const above = anchor.top - gap - edge
  const below = view.height - anchor.bottom - gap - edge
  const upward = below < surface.height && above > below
  const maxHeight = Math.max(0, view.height - 2 * edge)
  const height = Math.min(surface.height, maxHeight)
  const wanted = align === 'start' ? anchor.left : anchor.right - surface.width
  const left = Math.max(edge, Math.min(wanted, view.width - surface.width - edge))
  const beside = upward ? anchor.top - gap - height : anchor.bottom + gap
  const top = Math.max(edge, Math.min(beside, view.height - edge - height))
  return { left, top, maxHeight }
}
