#!/usr/bin/env bash
# Runs the real window, on a screen and a session bus of its own, through tests/e2e.
#
#   scripts/e2e.sh              the flows: chat, crash, restart, dropped file, offload
#   scripts/e2e.sh shots        pictures of the window  -> target/shots/real-*.png
#   scripts/e2e.sh rest         what it costs: start, memory and CPU at rest  -> printed
#
# Needs, on Debian: xvfb openbox dbus-x11 webkit2gtk-driver imagemagick xdotool python3-gi gir1.2-gtk-3.0, node 20, the starter
# model (cargo xtask setup), ui/dist (npm run build in ui/) and, once, a minute to install tauri-driver.
# TIDEGATE_PROFILE=release takes release builds; the default is dev, whose dependencies are optimized too. TIDEGATE_BIN_DIR names a
# folder with both programs built already.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-flows}
profile=${TIDEGATE_PROFILE:-dev}
folder=debug
if [ "$profile" = release ]; then folder=release; fi
bins=${TIDEGATE_BIN_DIR:-${CARGO_TARGET_DIR:-$PWD/target}/$folder} # set: built already
driver_version=2.1.0
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/tauri-driver-$driver_version

for tool in Xvfb openbox dbus-run-session WebKitWebDriver import xdotool node /usr/bin/python3; do
  command -v "$tool" >/dev/null || { echo "e2e: $tool is missing; see the head of $0" >&2; exit 1; }
done
if ! [ -x "$tools/bin/tauri-driver" ]; then
  cargo install tauri-driver --locked --quiet --version "$driver_version" --root "$tools"
fi
if grep -qs 'interface is not built' ui/dist/index.html || ! [ -e ui/dist/index.html ]; then
  echo "e2e: ui/dist is missing; run npm ci && npm run build in ui/" >&2
  exit 1
fi
if [ -z "${TIDEGATE_BIN_DIR:-}" ]; then cargo build --profile "$profile" -p tidegate-desktop -p cli; fi

# Each flow says which models its window has.
unset TIDEGATE_MODELS_DIR
mkdir -p target/shots
export TIDEGATE_DESKTOP=$bins/tidegate-desktop
export TIDEGATE_CLI=$bins/tidegate
export TIDEGATE_DRIVER=$tools/bin/tauri-driver
export TIDEGATE_SHOTS=$PWD/target/shots
export TIDEGATE_STARTER=$PWD/models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

# One process group for the screen, the bus and everything in them: its end is the end of them all.
exec setsid --wait bash tests/e2e/screen.sh node --test-force-exit tests/e2e/main.mjs "$what"
