// The real window: what is too close to the system for any other test.

import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { writeFileSync, openSync, readSync, closeSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, test } from "node:test";

import { App, Node, endAll, newFolder, picture, starter } from "./app.mjs";
import { until } from "./webdriver.mjs";

const LONG = "Write a long story about a lighthouse keeper, at least eight hundred words.";

afterEach(endAll);

test("a message is answered here, and is there after a restart", async () => {
  const data = newFolder();
  let app = await App.start(data);
  await app.ask("What is the capital of France? Answer with one word.");
  const answer = await app.answered();
  assert.match(answer, /Paris/);
  assert.match(await app.page.text("place-line"), /Here/);
  const draft = "a draft that must survive";
  await app.page.type("composer", draft);
  const [{ id }] = await app.page.invoke("list_conversations");
  await until("the draft to be kept", async () => (await app.page.invoke("open_conversation", { id })).draft === draft);
  await app.end();

  app = await App.start(data);
  await app.page.click("conversation-row");
  await until("the answer of before", async () => /Paris/.test((await app.answer()) ?? ""));
  assert.match(await app.page.text("message-user"), /capital of France/);
  await until("the draft", async () => (await app.page.value("composer")) === draft);
  await app.end();
});

test("an answer that a crash cut short is kept and marked", async () => {
  const data = newFolder();
  let app = await App.start(data);
  await app.ask(LONG);
  const [{ id }] = await app.page.invoke("list_conversations");
  const stored = async () => (await app.page.invoke("open_conversation", { id })).messages.at(-1);
  const before = await until("some of the answer to be stored", async () => {
    const message = await stored();
    return message.state === "writing" && message.text.length > 40 && message;
  });
  await app.kill("SIGKILL");

  app = await App.start(data);
  await app.page.click("conversation-row");
  const shown = await until("what had come", () => app.answer());
  const kept = await stored();
  assert.equal(kept.state, "interrupted");
  assert.ok(kept.text.startsWith(before.text), `kept: ${kept.text}\nstored before: ${before.text}`);
  // What is shown is rendered Markdown, so a word of it is looked for.
  assert.ok(shown.includes(/\p{L}{4,}/u.exec(before.text)[0]), shown);
  assert.match(shown, /cut off when Tidegate closed/);
  await app.end();
});

test("a file dragged onto the window gets its verdict", async () => {
  const app = await App.start(newFolder(), { models: null });
  await drag(starter);
  await until("the verdict", () => app.page.count("verdict-card"));
  assert.match(await app.page.text("verdict-card"), /Qwen2\.5.Coder/i);
  assert.equal(await app.page.text("verdict-title"), "Runs well");
  await until("the card to be drawn", () => app.page.settled());
  picture("verdict");
  await app.page.click("verdict-add");
  await app.ask("Say hello.");
  assert.ok((await app.answered()).length > 0);
  await app.end();
});

test("a broken file is refused with what is wrong", async () => {
  const folder = newFolder();
  const broken = join(folder, "stopped-download.gguf");
  writeFileSync(broken, head(starter, 100 << 20));
  const app = await App.start(newFolder(), { models: null });
  await drag(broken);
  await until("the verdict", () => app.page.count("verdict-card"));
  assert.match(await app.page.text("verdict-card"), /ends at byte 104857600 of \d+/);
  await app.end();
});

test("an answer is offloaded, and when the node dies it can be had here", async () => {
  const node = await Node.start();
  const app = await App.start(newFolder());
  await app.page.click("open-nodes");
  await app.page.type("node-url", node.url);
  await app.page.click("node-add");
  await until("the node to be ready", async () => /ready/i.test((await app.page.text("node-row")) ?? ""));
  await app.page.click("new-chat");
  await app.page.click("offload-remote");
  await app.ask("What is the capital of France? Answer with one word.");
  assert.match(await app.answered(), /Paris/);
  assert.match(await app.page.text("place-line"), /On /);

  await app.ask(LONG);
  await until("some of the answer", async () => /lighthouse/i.test((await app.answer()) ?? ""));
  await app.page.type("composer", "typed meanwhile");
  await node.kill();
  await until("the way out", () => app.page.count("answer-here"));
  assert.equal(await app.page.value("composer"), "typed meanwhile");
  picture("node-gone");
  await app.page.click("answer-here");
  await until("an answer from here", async () => /Here/.test((await app.page.text("place-line")) ?? ""), 180_000);
  assert.equal(await app.page.value("composer"), "typed meanwhile");
  await app.end();
});

/** Drags a file onto the middle of the window, through X11 as a file manager does. */
async function drag(path) {
  const source = spawn("/usr/bin/python3", [join(import.meta.dirname, "drag.py"), path, "4", "4"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  try {
    const words = createInterface({ input: source.stdout })[Symbol.asyncIterator]();
    assert.equal((await words.next()).value, "ready");
    const mouse = (...args) => execFileSync("xdotool", args.map(String));
    mouse("mousemove", 80, 30, "mousedown", 1);
    // A drag begins after some pixels of movement and is told to the target with each motion, so it moves in steps.
    for (let step = 1; step <= 20; step += 1) mouse("mousemove", 80 + step * 28, 30 + step * 20, "sleep", 0.03);
    mouse("mouseup", 1);
    assert.equal((await words.next()).value, "dropped");
  } finally {
    source.kill();
  }
}

function head(path, bytes) {
  const file = openSync(path, "r");
  const buffer = Buffer.alloc(bytes);
  readSync(file, buffer, 0, bytes, 0);
  closeSync(file);
  return buffer;
}
