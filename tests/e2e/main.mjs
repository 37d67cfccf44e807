// What scripts/e2e.sh runs once there is a screen: flows, shots or rest.

const what = process.argv[2];
const parts = { flows: ["./tray.mjs", "./flows.mjs"], shots: ["./shots.mjs"], rest: ["./rest.mjs"] };
if (!(what in parts)) throw new Error(`what is “${what}”? one of ${Object.keys(parts).join(", ")}`);
for (const part of parts[what]) await import(part);
