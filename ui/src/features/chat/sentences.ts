/** What a screen reader hears of a growing answer: whole sentences, each once. */
export function finishedSentences(text: string, heardUpTo: number): { speak: string; upTo: number } {
  const rest = text.slice(heardUpTo)
  let end = 0
  for (const match of rest.matchAll(/[.!?:。！？](?=\s|$)|\n{2,}/g)) {
    const at = match.index + match[0].length
    // A dot at the very end may still be inside "3.5" or "main.rs".
    if (at < rest.length) end = at
  }
  const speak = rest
    .slice(0, end)
    .replace(/```[\s\S]*?(```|$)/g, ' code ')
    .replace(/[*_`#>|]/g, '')
    .replace(/\s+/g, ' ')
    .trim()
  return { speak, upTo: heardUpTo + end }
}
