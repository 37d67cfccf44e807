// The real window: what is too close to the system for any other test.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync, openSync, readSync, closeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, test } from "node:test";

import { App, Node, DragSource, desktop, endAll, newFolder, picture, starter } from "./app.mjs";
import { until } from "./webdriver.mjs";

// Code, because the starter model is a coder: it refuses a story now and then, and this never.
const LONG = "Write a Python module with twenty short functions on strings, with a docstring each.";

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

test("other programs are served while the settings say so", async () => {
  const app = await App.start(newFolder());
  const boot = () => app.page.invoke("boot");
  const { url } = await until("the gateway", async () => (await boot()).programs.url && (await boot()).programs);
  const listed = await (await fetch(`${url}/v1/models`)).json();
  assert.equal(listed.data.length, 1);
  await app.page.click("open-settings");
  await app.page.click("gateway-off");
  await until("the gateway to end", async () => (await app.page.count("gateway-url")) === 0);
  await assert.rejects(fetch(`${url}/v1/models`, { signal: AbortSignal.timeout(5_000) }));
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
  // What is shown is rendered Markdown, so words of it are looked for.
  assert.ok(before.text.match(/\p{L}{4,}/gu).some((word) => shown.includes(word)), shown);
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

test("a file opened with the app gets its verdict, at the start and while it runs", async () => {
  const data = newFolder();
  const app = await App.start(data, { models: null, files: [starter] });
  await until("the verdict", () => app.page.count("verdict-card"));
  assert.equal(await app.page.text("verdict-title"), "Runs well");
  await app.page.click("verdict-add");
  await until("the card to close", async () => (await app.page.count("verdict-card")) === 0);
  const other = join(data, "notes.txt");
  writeFileSync(other, "not a model");
  execFileSync(desktop, ["--data", data, other]);
  await until("the second verdict", () => app.page.count("verdict-card"));
  assert.match(await app.page.text("verdict-card"), /notes\.txt/);
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
  await addNode(app, node);
  await app.page.click("offload-remote");
  await app.ask("What is the capital of France? Answer with one word.");
  assert.match(await app.answered(), /Paris/);
  assert.match(await app.page.text("place-line"), /On /);

  await app.ask(LONG);
  await until("some of the answer", async () => ((await app.answer()) ?? "").length > 40);
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

test("a running answer is moved to a node and back, and says so where it moved", async () => {
  const node = await Node.start();
  const app = await App.start(newFolder());
  await addNode(app, node);
  await app.ask(LONG);
  // From then on the text moves and what is below it stays where it is, for a click to meet.
  await until("a text longer than the view", () => app.page.run("const view = document.querySelector('[role=log]'); return view.scrollTop > 0"));
  for (const [moves, place] of [[1, /then 127\.0\.0\.1/], [2, /then here/i]]) {
    const before = ((await app.answer()) ?? "").length;
    await until("some more of the answer", async () => ((await app.answer()) ?? "").length > before + 80);
    await app.page.click("move-answer");
    await until("the menu", () => app.page.count("move-place"));
    await app.page.click("move-place");
    await until("the seam", async () => (await app.page.count("seam")) === moves, 120_000);
    await until("the place", async () => place.test((await app.page.text("place-line")) ?? ""));
  }
  await app.page.click("stop");
  const [{ id }] = await app.page.invoke("list_conversations");
  const kept = await until("the answer to be kept", async () => {
    const message = (await app.page.invoke("open_conversation", { id })).messages.at(-1);
    return message.state !== "writing" && message;
  });
  assert.deepEqual(kept.segments.map(({ ended }) => ended).slice(0, 2), ["handed over", "handed over"]);
  assert.equal(kept.segments.length, 3);
  // The seams stay where they are now.
  await app.page.click("seam");
  await until("the decision", () => app.page.count("decision-card"));
  await until("the card to be drawn", () => app.page.settled());
  picture("moved");
  await app.end();
});

async function addNode(app, node) {
  await app.page.click("open-nodes");
  await app.page.type("node-url", node.url);
  await app.page.click("node-add");
  await until("the node to be ready", async () => /ready/i.test((await app.page.text("node-row")) ?? ""));
  await app.page.click("new-chat");
}

/** Drags a file onto the middle of the screen, where the window is. */
async function drag(path) {
  const source = await DragSource.start(path);
  await source.dragTo([640, 430]);
  source.end();
}

function head(path, bytes) {
  const file = openSync(path, "r");
  const buffer = Buffer.alloc(bytes);
  readSync(file, buffer, 0, bytes, 0);
  closeSync(file);
  return buffer;
}
