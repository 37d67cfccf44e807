// The table of what was seen to work: docs/CONFORMANCE.md, one line for each test that passed.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";

const PAGE = new URL("../../docs/CONFORMANCE.md", import.meta.url);
const HEAD = `# Dialects, as their official clients speak them
Written by the tests in \`tests/clients\` (\`UPDATE_CONFORMANCE=1 npm test\` there), which \`make test\` runs against a real
\`tidegate serve\` with the starter model: a line is here because its test passed, and a line too few or too many fails.
`;

const require = createRequire(import.meta.url);
const lock = require("./package-lock.json");
const passed = [];

/** A test of one feature of a dialect; a client is named by its package. */
export function feature(dialect, client, name, run) {
  test(`${dialect}: ${name}`, { timeout: 120_000 }, async () => {
    await run();
    passed.push({ dialect, client, name });
  });
}

/** The page for what passed; where it isn't the one that is kept, the test fails, or writes it anew. */
export function checkPage() {
  test("docs/CONFORMANCE.md says what passed", () => {
    let page = HEAD;
    for (const dialect of new Set(passed.map((row) => row.dialect))) {
      page += `\n## ${dialect}\n\n| Feature | Client |\n| --- | --- |\n`;
      for (const row of passed.filter((row) => row.dialect === dialect)) {
        const version = lock.packages[`node_modules/${row.client}`].version;
        page += `| ${row.name} | \`${row.client}\` ${version} |\n`;
      }
    }
    if (process.env.UPDATE_CONFORMANCE) writeFileSync(PAGE, page);
    if (readFileSync(PAGE, "utf8") !== page) {
      throw new Error("it says something else: UPDATE_CONFORMANCE=1 npm test in tests/clients writes it anew");
    }
  });
}
