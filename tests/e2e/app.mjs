// Starts and ends what the tests look at: the desktop app behind tauri-driver, and `tidegate serve` as a node.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";

import { Page, until } from "./webdriver.mjs";

const env = (name) => process.env[name] ?? fail(`${name} is not set; run scripts/e2e.sh`);
export const desktop = env("TIDEGATE_DESKTOP");
export const starter = env("TIDEGATE_STARTER");
export const shotsFolder = env("TIDEGATE_SHOTS");
const cli = env("TIDEGATE_CLI");
const driver = env("TIDEGATE_DRIVER");

function fail(message) {
  throw new Error(message);
}

export const newFolder = () => mkdtempSync(join(tmpdir(), "tidegate-e2e-"));

/** Only the starter, whatever else a developer has beside it. */
const starterFolder = newFolder();
symlinkSync(starter, join(starterFolder, basename(starter)));

/** Everything started here that has not ended: a test that fails must not leave its app to the next one. */
const started = new Set();

export async function endAll() {
  for (const child of started) child.kill("SIGKILL");
  started.clear();
  for (const pid of processesOf(desktop)) signal(pid, "SIGKILL");
  await until("everything to end", () => processesOf(desktop).length + webProcesses().length === 0, 10_000);
}

/** The running app with its page. `kill` is what a crash is; `end` is what logging out is. */
export class App {
  static async start(data, { models = starterFolder, files = [] } = {}) {
    const [port, native] = [await freePort(), await freePort()];
    const child = spawn(driver, ["--port", port, "--native-port", native], { stdio: ["ignore", "ignore", "pipe"] });
    started.add(child);
    const log = collect(child.stderr);
    const url = `http://127.0.0.1:${port}`;
    const began = performance.now();
    const args = ["--data", data, "--show", ...(models ? ["--models", models] : []), ...files];
    const app = new App();
    try {
      app.page = await until("the window's session", () => Page.open(url, desktop, args), 30_000);
      app.session_ms = performance.now() - began;
      await until("the interface", () => app.page.count("css:[data-testid=composer], [data-testid=no-model]"));
      app.usable_ms = performance.now() - began;
    } catch (error) {
      throw new Error(`${error.message}\n${log()}`, { cause: error });
    }
    app.driver = child;
    app.pid = processesOf(desktop).at(-1) ?? fail("the app has no process");
    return app;
  }

  async kill(how = "SIGKILL") {
    signal(this.pid, how);
    await until("the app to end", () => !processesOf(desktop).includes(this.pid), 10_000);
    this.driver.kill("SIGTERM");
    await until("its web processes to end", () => webProcesses().length === 0, 10_000);
  }

  end() {
    return this.kill("SIGTERM");
  }

  /** Sends what was typed and waits until an answer begins to show. */
  async ask(text) {
    const before = await this.page.count("message-assistant");
    await this.page.type("composer", text);
    await this.page.click("send");
    await until("an answer to begin", async () => (await this.page.count("message-assistant")) > before);
  }

  answer() {
    return this.page.text("message-assistant");
  }

  /** Waits until nothing is being written any more, and returns the answer. */
  async answered(limit_ms = 120_000) {
    await until("the answer to end", async () => (await this.page.count("stop")) === 0, limit_ms);
    return this.answer();
  }
}

/** `tidegate serve` on a free port. */
export class Node {
  static async start(model = starter) {
    const child = spawn(cli, ["serve", "--listen", "127.0.0.1:0", "--model", model, "--data", newFolder()], { stdio: ["ignore", "ignore", "pipe"] });
    started.add(child);
    const lines = createInterface({ input: child.stderr });
    for await (const line of lines) {
      const url = /listening on (http:\/\/\S+)/.exec(line)?.[1];
      if (url) {
        child.stderr.resume();
        return Object.assign(new Node(), { child, url });
      }
    }
    throw new Error("tidegate serve ended before it listened");
  }

  async kill() {
    this.child.kill("SIGKILL");
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, "exit");
  }
}

/** A window at the screen's corner that a file can be dragged from, through X11 as out of a file manager. */
export class DragSource {
  static async start(path) {
    const source = new DragSource();
    source.child = spawn("/usr/bin/python3", [join(import.meta.dirname, "drag.py"), path, "4", "4"], { stdio: ["ignore", "pipe", "inherit"] });
    source.words = createInterface({ input: source.child.stdout })[Symbol.asyncIterator]();
    assert.equal(await source.#word(), "ready");
    return source;
  }

  /** Drags the file to a point of the screen and drops it there, where it must be taken. */
  async dragTo(to) {
    assert.ok(await this.tryDrag(to), "the file was refused");
  }

  /** Drags the file to a point of the screen and drops it there; says whether it was taken. */
  async tryDrag(to) {
    const from = [80, 30];
    mouse("mousemove", ...from, "mousedown", 1);
    // A drag begins after some pixels of movement and is told to the target with each motion, so it moves in steps.
    const at = (step) => from.map((start, axis) => Math.round(start + ((to[axis] - start) * step) / 20));
    for (let step = 1; step <= 20; step += 1) mouse("mousemove", ...at(step), "sleep", 0.03);
    mouse("mouseup", 1);
    return (await this.#word()) === "dropped";
  }

  click() {
    mouse("mousemove", 80, 30, "click", 1);
  }

  end() {
    this.child.kill();
  }

  async #word() {
    return (await this.words.next()).value;
  }
}

const mouse = (...args) => execFileSync("xdotool", args.map(String));

/** The screen as it is, as a PNG. */
export function picture(name) {
  execFileSync("import", ["-window", "root", join(shotsFolder, `real-${name}.png`)]);
}

/** Ids of the processes that run `program`, oldest first. */
export function processesOf(program) {
  return processes().filter(({ exe }) => exe === program).map(({ pid }) => pid);
}

export function webProcesses() {
  return processes().filter(({ exe }) => /^WebKit(Web|Network)Process$/.test(basename(exe))).map(({ pid }) => pid);
}

/** In a container /proc may be the machine's, while signals go by the container's own numbers: the last of these. */
function signal(pid, how) {
  const own = /^NSpid:.*?(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))[1];
  process.kill(Number(own), how);
}

/** Only of this run's session: another run on the same machine has windows of its own. */
function processes() {
  const session = sessionOf("self");
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .sort((a, b) => a - b)
    .flatMap((pid) => {
      try {
        return sessionOf(pid) === session ? [{ pid, exe: readlinkSync(`/proc/${pid}/exe`) }] : [];
      } catch {
        return []; // it ended meanwhile
      }
    });
}

/** The id of a process's session; null for one that has ended and was not waited for. */
function sessionOf(pid) {
  const [state, , , session] = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1).split(" ");
  return state === "Z" ? null : session;
}

function collect(stream) {
  let text = "";
  stream.on("data", (chunk) => (text = (text + chunk).slice(-4000)));
  return () => text;
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}
