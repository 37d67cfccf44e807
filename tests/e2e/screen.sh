#!/usr/bin/env bash
# Runs a command on a virtual screen with a window manager and a session bus, and ends all of it with the command.
# Must lead its process group (setsid), because that is what it ends.
set -uo pipefail

display=$(mktemp)
cleanup() {
  status=$?
  trap '' TERM
  rm -f "$display"
  kill -TERM 0
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

Xvfb -displayfd 3 -screen 0 1280x900x24 -nolisten tcp 3>"$display" 2>/dev/null &
for _ in $(seq 100); do
  [ -s "$display" ] && break
  sleep 0.05
done
export DISPLAY=:$(cat "$display")

# No GPU on a virtual screen; a fixed language and scale make pictures comparable.
export LIBGL_ALWAYS_SOFTWARE=1 WEBKIT_DISABLE_DMABUF_RENDERER=1 GDK_BACKEND=x11 GDK_SCALE=1 LC_ALL=C.UTF-8 NO_AT_BRIDGE=1
unset WAYLAND_DISPLAY

# The bus and the desktop services that it starts talk to nobody here; what they say goes to a log of its own. In the
# background and waited for, because a trap comes only between two commands.
exec {log}>"${TIDEGATE_BUS_LOG:-/dev/null}"
dbus-run-session -- bash -c 'openbox --sm-disable 2>/dev/null & exec "$@" 2>&3 3>&-' screen "$@" 3>&2 2>&$log &
wait $!
