#!/usr/bin/env bash
# Renders the tray images (template, 18 pt at 1x, 2x and 3x) and the app icon from the SVG files beside this script.
# Needs rsvg-convert (Debian: librsvg2-bin, Homebrew: librsvg) and npx. The PNGs are committed: run this after a change.
set -euo pipefail
cd "$(dirname "$0")"

for svg in tray/*.svg; do
  name=${svg%.svg}
  rsvg-convert -w 18 -h 18 "$svg" -o "$name.png"
  rsvg-convert -w 36 -h 36 "$svg" -o "$name@2x.png"
  rsvg-convert -w 54 -h 54 "$svg" -o "$name@3x.png"
done

rsvg-convert -w 1024 -h 1024 icon/app.svg -o icon/app.png
npx --yes @tauri-apps/cli@2 icon icon/app.png -o ../src-tauri/icons >/dev/null
# Only what tauri.conf.json names is kept; phones and the Windows store are out of scope.
find ../src-tauri/icons -mindepth 1 ! -name 32x32.png ! -name 128x128.png ! -name '128x128@2x.png' ! -name icon.icns ! -name icon.ico -delete
