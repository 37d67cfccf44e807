const width = 180
const height = 30

/** Paths in a 180 × 30 box: the newest value at the right edge, one step to the left for each older one. */
export function sparkline(values: (number | null)[], span: number, top: number): { line: string; area: string } {
  const shown = values.slice(-(span + 1))
  const step = width / span
  let line = ''
  let area = ''
  let run: string[] = []

  const close = () => {
    const [first] = run
    const last = run.at(-1)
    if (first !== undefined && last !== undefined && run.length > 1) {
      line += `M${run.join('L')}`
      area += `M${first.split(' ')[0]} ${height}L${run.join('L')}L${last.split(' ')[0]} ${height}Z`
    }
    run = []
  }

  shown.forEach((value, index) => {
    if (value === null) return close()
    const x = width - (shown.length - 1 - index) * step
    const y = height - 1 - Math.min(1, Math.max(0, value / top)) * (height - 2)
    run.push(`${x.toFixed(1)} ${y.toFixed(1)}`)
  })
  close()
  return { line, area }
}
