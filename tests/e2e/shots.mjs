// Pictures of the real window: panel and window, light and dark, with an answer in it. A person looks at them.

import { App, newFolder, picture } from "./app.mjs";
import { until } from "./webdriver.mjs";

const app = await App.start(newFolder());
await app.ask("Write a Rust function that adds two numbers, then one sentence about it.");
await app.answered();
for (const theme of ["light", "dark"]) {
  const { settings } = await app.page.invoke("boot");
  await app.page.invoke("save_settings", { settings: { ...settings, theme } });
  await until(`the ${theme} theme`, async () => (await app.page.invoke("boot")).settings.theme === theme);
  for (const view of ["window", "panel"]) {
    await app.page.invoke("set_view", { view });
    await until(`the ${view} to be drawn`, () => app.page.settled());
    picture(`${view}-${theme}`);
  }
}
await app.end();
console.log("pictures are in target/shots");
