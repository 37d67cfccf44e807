import type { ConversationSummaryDto } from '../../ipc/backend'

export type Group = { label: string; conversations: ConversationSummaryDto[] }

function startOfDay(ms: number): number {
  const day = new Date(ms)
  day.setHours(0, 0, 0, 0)
  return day.getTime()
}

/** Chats by when they were last used, newest first, narrowed to titles that contain the search. */
export function group(conversations: ConversationSummaryDto[], nowMs: number, search = ''): Group[] {
  const wanted = search.trim().toLocaleLowerCase()
  const today = startOfDay(nowMs)
  const yesterday = startOfDay(today - 1)
  const week = startOfDay(today - 6 * 86_400_000)
  const labels: [string, (at: number) => boolean][] = [
    ['Today', (at) => at >= today],
    ['Yesterday', (at) => at >= yesterday],
    ['This week', (at) => at >= week],
    ['Earlier', () => true],
  ]
  const groups: Group[] = labels.map(([label]) => ({ label, conversations: [] }))
  const sorted = [...conversations].sort((one, other) => other.updatedAtMs - one.updatedAtMs)
  for (const conversation of sorted) {
    if (wanted && !conversation.title.toLocaleLowerCase().includes(wanted)) continue
    const at = labels.findIndex(([, within]) => within(conversation.updatedAtMs))
    groups[at]?.conversations.push(conversation)
  }
  return groups.filter(({ conversations: found }) => found.length > 0)
}
