// A real `tidegate serve` with the starter model, on a port of its own.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";

/** Starts the server; `stop` ends it and forgets its data. */
export async function serve() {
  const bins = process.env.TIDEGATE_BIN_DIR ?? "../../target/debug";
  const starter = process.env.TIDEGATE_STARTER_MODEL;
  if (!starter) throw new Error("TIDEGATE_STARTER_MODEL names no model: run `make setup`, then set it to the file");
  const data = mkdtempSync(join(tmpdir(), "tidegate-clients-"));
  const child = spawn(
    join(bins, "tidegate"),
    ["serve", "--listen", "127.0.0.1:0", "--slots", "4", "--models", dirname(starter), "--data", data],
    { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, NO_COLOR: "1" } },
  );
  const said = [];
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const url = await new Promise((resolve, reject) => {
    child.once("error", reject);
    ended.then((code) => reject(new Error(`tidegate ended with ${code}: ${said.join("\n")}`)));
    createInterface({ input: child.stderr }).on("line", (line) => {
      said.push(line);
      if (line.startsWith("listening on ")) resolve(line.slice("listening on ".length));
    });
  });
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
    rmSync(data, { recursive: true, force: true });
  };
  return { url, stop, model: basename(starter, ".gguf") };
}
