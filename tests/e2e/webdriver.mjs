// A small W3C WebDriver client, just wide enough for these tests. Elements are found by their data-testid.
// WebKitWebDriver hangs on screenshots and on ending a session: neither is asked of it.

const ELEMENT = "element-6066-11e4-a52e-4f735466cecf";

export class Page {
  constructor(driver, session) {
    this.base = `${driver}/session/${session}`;
  }

  static async open(driver, application, args) {
    const capabilities = { alwaysMatch: { "tauri:options": { application, args } } };
    const { sessionId } = await request(`${driver}/session`, "POST", { capabilities });
    return new Page(driver, sessionId);
  }

  run(script, ...args) {
    return request(`${this.base}/execute/sync`, "POST", { script, args });
  }

  /** Calls a command of the shell the way the interface does. */
  async invoke(command, args = {}) {
    const script = `const [command, args, done] = arguments;
      window.__TAURI_INTERNALS__.invoke(command, args).then((ok) => done({ ok }), (error) => done({ error }));`;
    const { ok, error } = await request(`${this.base}/execute/async`, "POST", { script, args: [command, args] });
    if (error) throw new Error(`${command}: ${JSON.stringify(error)}`);
    return ok;
  }

  /** True once the size has not changed for a while and two frames were drawn since. */
  settled() {
    const script = `const done = arguments[0];
      const size = () => innerWidth + "x" + innerHeight;
      const before = size();
      setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(() => done(size() === before))), 400);`;
    return request(`${this.base}/execute/async`, "POST", { script, args: [] });
  }

  async all(testid) {
    const found = await request(`${this.base}/elements`, "POST", { using: "css selector", value: css(testid) });
    return found.map((element) => element[ELEMENT]);
  }

  count(testid) {
    return this.run("return document.querySelectorAll(arguments[0]).length", css(testid));
  }

  /** The visible text of the last element with this id, or null where there is none. */
  text(testid) {
    return this.run("return [...document.querySelectorAll(arguments[0])].at(-1)?.innerText ?? null", css(testid));
  }

  value(testid) {
    return this.run("return document.querySelector(arguments[0])?.value ?? null", css(testid));
  }

  /** Waits for the element and clicks it as a mouse would. */
  async click(testid) {
    await until(`${testid} to click`, async () => {
      const element = (await this.all(testid)).at(-1);
      if (!element) return false;
      await request(`${this.base}/element/${element}/click`, "POST", {});
      return true;
    });
  }

  /** Types with the keyboard, once the element can take it. */
  async type(testid, text) {
    await until(`${testid} to type in`, async () => {
      const element = (await this.all(testid)).at(-1);
      if (!element) return false;
      await request(`${this.base}/element/${element}/value`, "POST", { text });
      return true;
    });
  }
}

function css(testid) {
  return testid.startsWith("css:") ? testid.slice(4) : `[data-testid="${testid}"]`;
}

async function request(url, method, body) {
  const response = await fetch(url, { method, body: JSON.stringify(body), signal: AbortSignal.timeout(60_000) });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${method} ${url}: ${value?.error}: ${value?.message}`);
  return value;
}

/** Asks again until the answer is truthy; what the page itself says is the event being waited for. */
export async function until(what, ask, limit_ms = 60_000) {
  const end = performance.now() + limit_ms;
  let last;
  for (;;) {
    try {
      const answer = await ask();
      if (answer) return answer;
      last = answer;
    } catch (error) {
      last = error;
    }
    if (performance.now() > end) throw new Error(`waited ${limit_ms / 1000} s for ${what}; last: ${last}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
