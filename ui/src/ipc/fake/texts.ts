const guardBefore = `The guard of \`std::sync::Mutex\` is not \`Send\`. A task that is suspended at an \`.await\` may be resumed on another thread, so everything alive across that point must be.

\`\`\`rust
let mut map = self.map.lock().unwrap();
let page = fetch(url).await?; // the guard is still held here
map.insert(url, page);
\`\`\`

`

const guardAfter = `Take the lock **after** the wait, for as short as you can:

\`\`\`rust
let page = fetch(url).await?;
self.map.lock().unwrap().insert(url, page);
\`\`\`

If the state must be locked while waiting, give it to one task and send it messages. \`tokio::sync::Mutex\` is for the rest: it costs more, and it is *fair*.`

const table = `The rate. How much is used says what *once* had to leave; the rate says what is hurting **now**.

| Reading | What it says | Worth acting on |
| --- | --- | --- |
| Swap used | Pages that left at some time | above a fifth of memory |
| Swap in | Pages that are needed again | more than 4 MB/s for a while |
| Swap out | Pages that make room | only together with swap in |
| Pressure | The system's own verdict | from "warning" on |

Three things follow:

1. A Mac with 6 GB of swap in use and no traffic is fine: those pages are asleep.
2. A Mac with 0.5 GB in use and 40 MB/s in is **not**: each token waits for the disk.
3. The compressor comes before swap, so watch what is compressed too:
   - it costs CPU, not disk;
   - it grows first.

To see it yourself:

\`\`\`bash
# pages in and out each second; a page is 16 KB on Apple silicon
vm_stat 1 | awk 'NR > 3 { print $(NF-1) * 16 / 1024, "MB/s in" }'
\`\`\`

> A number without its unit and its rate is a rumour.

More in [the manual](https://developer.apple.com/documentation/).`

const long = Array.from({ length: 12 }, (_, part) => `## Part ${part + 1}\n\n${table.replace('The rate.', `Part ${part + 1}. The rate.`)}\n\n`).join('')

export const answers = {
  guard: guardBefore + guardAfter,
  guardSeam: guardBefore.length,
  /** In the middle of a sentence. */
  guardMove: guardBefore.indexOf('another thread') + 'another'.length,
  /** In the middle of code. */
  guardCode: guardBefore.length + guardAfter.indexOf('.insert(url, page)'),
  table,
  long,
  short: 'Either side may end the agreement with three months’ notice to the end of a quarter. What was ordered before the notice is delivered and paid as agreed; **confidentiality** goes on for two years.',
  awk: `\`\`\`bash
awk '{ print substr($4, 2, 17) }' access.log | uniq -c
\`\`\`

The fourth field is the time; its first 17 letters end at the minute. The log is already`,
  japanese: '`std::sync::Mutex` のガードは `Send` ではありません。`.await` で中断されたタスクは別のスレッドで再開されることがあるため、その時点で生きている値はすべて `Send` でなければなりません。\n\nロックは待機の**後**に、できるだけ短い時間だけ取得してください。',
  german: 'Der Guard von `std::sync::Mutex` ist nicht `Send`. Eine an einem `.await` unterbrochene Aufgabe kann auf einem anderen Betriebssystemausführungsstrang fortgesetzt werden; alles, was dort noch lebt, muss das aushalten.\n\nNimm die Sperre **nach** dem Warten, und so kurz wie möglich.',
}
