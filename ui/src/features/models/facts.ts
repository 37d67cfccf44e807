import type { ModelDto } from '../../ipc/backend'
import { contextLen, fileSize, parameters, tokensPerSec } from '../../primitives/format'

/** "8.2B · 5.0 GB file · trained for 40k context" */
export function modelFacts(model: ModelDto): string {
  return [
    model.architecture,
    model.parameters > 0 ? parameters(model.parameters) : null,
    `${fileSize(model.fileBytes)} file`,
    model.contextLen > 0 ? `trained for ${contextLen(model.contextLen)} context` : null,
  ]
    .filter((fact) => fact)
    .join(' · ')
}

/** "8.2B · trained for 40k context · in the models folder" */
export function listFacts(model: ModelDto): string {
  const origins = { folder: 'in the models folder', added: 'left where it is', argument: 'given at start' }
  return [
    model.parameters > 0 ? parameters(model.parameters) : null,
    model.contextLen > 0 ? `trained for ${contextLen(model.contextLen)}` : null,
    origins[model.origin],
  ]
    .filter((fact) => fact)
    .join(' · ')
}

/** "Q4_K_M · 5.0 GB · 52 tok/s" */
export function shortFacts(model: ModelDto): string {
  return [
    model.quantization,
    fileSize(model.fileBytes),
    model.decodeTokensPerSec === null ? null : `${tokensPerSec(model.decodeTokensPerSec)} tok/s`,
  ]
    .filter((fact) => fact)
    .join(' · ')
}

/** The model that answers next: the chosen one, else the first that can be loaded. */
export function currentModel(models: ModelDto[], chosen: string | null): ModelDto | null {
  return models.find((model) => model.id === chosen) ?? models.find((model) => model.error === null) ?? null
}
