// What the app costs: from start to a usable window, and memory and CPU of all its processes at rest, hidden, over a minute.

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";

import { App, desktop, newFolder, processesOf, webProcesses } from "./app.mjs";

const REST_S = 60;
const TICKS_PER_S = Number(execFileSync("getconf", ["CLK_TCK"]));

const starts = [];
for (let i = 0; i < 3; i += 1) {
  const app = await App.start(newFolder());
  starts.push(app.usable_ms);
  await app.end();
}
console.log(`start to a usable window, three times: ${starts.map((ms) => `${(ms / 1000).toFixed(2)} s`).join(", ")} (WebDriver's own start included)`);

const app = await App.start(newFolder());
await measure("visible, at rest");
const id = execFileSync("xdotool", ["search", "--onlyvisible", "--name", "^Tidegate$"]).toString().trim().split("\n")[0];
// Without a tray there is nothing to bring it back, so the app never hides itself here: minimizing is what hides it.
execFileSync("xdotool", ["windowminimize", id]);
await measure("minimized, at rest");
await app.end();

async function measure(what) {
  await sleep(5_000);
  const pids = [...processesOf(desktop), ...webProcesses()];
  const before = pids.map(cpuTicks);
  const started = performance.now();
  await sleep(REST_S * 1_000);
  const elapsed_s = (performance.now() - started) / 1_000;
  console.log(`${what}, over ${elapsed_s.toFixed(0)} s:`);
  let [rssSum, pssSum, cpuSum] = [0, 0, 0];
  for (const [i, pid] of pids.entries()) {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
    const mib = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(rollup)[1]) / 1024;
    const cpu = (cpuTicks(pid) - before[i]) / TICKS_PER_S / elapsed_s;
    rssSum += mib("Rss");
    pssSum += mib("Pss");
    cpuSum += cpu;
    const name = readFileSync(`/proc/${pid}/comm`, "utf8").trim();
    console.log(row(name, mib("Rss"), mib("Pss"), cpu, `${readdirSync(`/proc/${pid}/task`).length} threads`));
  }
  console.log(row("together", rssSum, pssSum, cpuSum, ""));
}

function row(name, rss, pss, cpu, rest) {
  return `  ${name.padEnd(16)} RSS ${rss.toFixed(0).padStart(4)} MiB  PSS ${pss.toFixed(0).padStart(4)} MiB  CPU ${(cpu * 100).toFixed(2).padStart(5)} % of a core  ${rest}`;
}

function cpuTicks(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return Number(fields[11]) + Number(fields[12]);
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
