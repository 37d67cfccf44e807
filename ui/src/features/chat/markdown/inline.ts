import type { Token } from 'marked'

const entities: Record<string, string> = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'", '&nbsp;': '\u00a0' }

/** A token's text as the reader should see it: HTML stays the letters it was written with. */
export function plain(token: Token): string {
  if (token.type === 'html') return token.raw
  const text = 'text' in token ? String(token.text) : token.raw
  return text.replace(/&(?:amp|lt|gt|quot|#39|nbsp);/g, (entity) => entities[entity] ?? entity)
}

/** The address when it is one a person may be sent to, else null. */
export function safeUrl(href: string): string | null {
  try {
    const url = new URL(href)
    return url.protocol === 'https:' || url.protocol === 'http:' || url.protocol === 'mailto:' ? url.href : null
  } catch {
    return null
  }
}
