// The icon in the bar, on a desktop that draws one: what its menu does, and the window's manners when it is there.

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { DragSource, desktop, newFolder, starter } from "./app.mjs";
import { until } from "./webdriver.mjs";

test("the icon's menu opens, switches offload and quits; closing only hides", async () => {
  const bar = await Bar.start();
  const args = ["--data", newFolder()];
  const app = spawn(desktop, args, { stdio: "inherit" });
  try {
    assert.equal(await bar.next(), "icon");
    const menu = ["Open Tidegate", ["Offload", ["Local only", "Auto*", "Remote"]], "Settings…", "Quit Tidegate"];
    assert.deepEqual(await bar.menu(), menu);
    assert.deepEqual(windows(), [], "it starts out of the way");

    await bar.choose("Open Tidegate");
    const [panel] = await until("the panel", () => windows().length === 1 && windows());
    assert.deepEqual(size(panel), [400, 620]);

    const source = await DragSource.start(starter);
    // Until its page is loaded the panel takes no drop, and then it gets out of the way as after any click elsewhere.
    await until("the panel to take a drop", async () => {
      if (windows().length === 0) await bar.choose("Open Tidegate");
      await until("the panel", () => windows().length === 1);
      execFileSync("xdotool", ["windowactivate", "--sync", panel]);
      return source.tryDrag(middle(panel));
    });
    await sleep(1_000);
    assert.deepEqual(windows(), [panel], "a drag from elsewhere reaches the panel, and what came of it is seen");
    source.click();
    await until("the panel to get out of the way", () => windows().length === 0);
    source.end();

    await bar.choose("Open Tidegate");
    await until("the panel again", () => windows().length === 1);
    execFileSync("xdotool", ["windowactivate", "--sync", panel, "key", "alt+F4"]);
    await until("the window to hide", () => windows().length === 0);
    assert.equal(app.exitCode, null);

    await bar.choose("Local only");
    await until("the mark to move", async () => (await bar.menu())[1][1][0] === "Local only*");

    const second = spawnSync(desktop, args, { timeout: 20_000 });
    assert.equal(second.status, 0, "a second start ends at once");
    await until("the first one's window", () => windows().length === 1);

    await bar.choose("Quit Tidegate");
    if (app.exitCode === null) await once(app, "exit");
    assert.equal(app.exitCode, 0);
  } finally {
    app.kill("SIGKILL");
    bar.end();
  }
});

class Bar {
  static async start() {
    const bar = new Bar();
    bar.child = spawn("/usr/bin/python3", [join(import.meta.dirname, "tray.py")], { stdio: ["pipe", "pipe", "inherit"] });
    bar.lines = createInterface({ input: bar.child.stdout })[Symbol.asyncIterator]();
    assert.equal(await bar.next(), "watching");
    return bar;
  }

  async next() {
    return (await this.lines.next()).value;
  }

  async menu() {
    this.child.stdin.write("menu\n");
    return JSON.parse(await this.next());
  }

  async choose(label) {
    this.child.stdin.write(`choose ${label}\n`);
    assert.equal(await this.next(), "chosen");
  }

  end() {
    this.child.kill();
  }
}

function windows() {
  const found = spawnSync("xdotool", ["search", "--onlyvisible", "--name", "^Tidegate$"], { encoding: "utf8" });
  return found.stdout.split("\n").filter(Boolean);
}

function size(id) {
  return geometry(id, ["WIDTH", "HEIGHT"]);
}

function middle(id) {
  const [x, y, width, height] = geometry(id, ["X", "Y", "WIDTH", "HEIGHT"]);
  return [Math.round(x + width / 2), Math.round(y + height / 2)];
}

function geometry(id, names) {
  const lines = execFileSync("xdotool", ["getwindowgeometry", "--shell", id], { encoding: "utf8" });
  return names.map((name) => Number(new RegExp(`^${name}=(\\d+)`, "m").exec(lines)[1]));
}
