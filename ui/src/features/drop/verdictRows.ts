import type { FitDto, VerdictDto } from '../../ipc/backend'
import { verdictWords, type Status } from '../../ipc/words'
import { contextLen, memory, tokensPerSec } from '../../primitives/format'

export type Row = { label: string; value: string; note: string; status: Status; noteStatus: Status }

type ModelVerdict = Extract<VerdictDto, { kind: 'model' }>

/** What the card's table says: memory for each context, then the speed. */
export function verdictRows({ model, fits, nodesThatCould, alreadyListed }: ModelVerdict): Row[] {
  const [node] = nodesThatCould
  const rows = [...fits].sort((a, b) => a.contextLen - b.contextLen).map((fit): Row => {
    const { status } = verdictWords[fit.verdict]
    return { label: `With ${contextLen(fit.contextLen)} context`, value: memory(fit.neededBytes), note: note(fit, node), status, noteStatus: fit.verdict === 'tooBig' && node ? 'offloaded' : status }
  })
  if (model.decodeTokensPerSec !== null) {
    rows.push({ label: 'Speed here', value: `${tokensPerSec(model.decodeTokensPerSec)} tok/s`, note: alreadyListed ? 'measured' : 'forecast', status: 'calm', noteStatus: 'calm' })
  } else if (model.fit?.verdict !== 'tooBig') {
    rows.push({ label: 'Speed here', value: '—', note: 'measured with the first answer', status: 'unknown', noteStatus: 'unknown' })
  }
  return rows
}

function note(fit: FitDto, node: string | undefined): string {
  switch (fit.verdict) {
    case 'runsWell':
      return fit.availableBytes === null ? 'fits' : `${memory(fit.availableBytes)} free now`
    case 'tight':
      return 'little room left'
    case 'tooBig':
      return node ? `goes to ${node}` : 'too big here'
    case 'unknown':
      return 'free memory not known'
  }
}

/** The nearest thing that would work, for a model that is too big as it is. */
export function nearest({ fits, model, nodesThatCould }: ModelVerdict): string | null {
  if (model.fit?.verdict !== 'tooBig') return null
  const smaller = Math.max(0, ...[model.fit, ...fits].map((fit) => fit.maxContext ?? 0))
  const node = nodesThatCould.length > 0 ? `${nodesThatCould.join(' or ')} could take it.` : null
  const here = smaller >= 512 ? `It fits here with a context up to ${contextLen(smaller)}.` : 'A smaller quantization, or a model with fewer parameters, would fit.'
  return [here, node].filter((part) => part !== null).join(' ')
}
