#!/usr/bin/env bash
# Installs what must be there before xtask can be built, then runs `cargo xtask "$@"`. Called by the Makefile.
#
# On Linux with apt: the Debian packages below, as root or through sudo. On macOS: checks for the command line tools.
# On both: Rust through rustup, when there is none or it is too old. With a terminal it asks before each of these.
# When nothing is missing this takes a tenth of a second and uses no network.
set -euo pipefail
cd "$(dirname "$0")/.."
task=${1:?task}

base=(build-essential ca-certificates curl git pkg-config python3 python3-venv)
window=(libwebkit2gtk-4.1-dev libayatana-appindicator3-dev librsvg2-dev libxdo-dev fonts-dejavu-core)
tests=(xvfb openbox dbus-x11 dbus-daemon webkit2gtk-driver imagemagick xdotool chromium procps
  python3-gi gir1.2-gtk-3.0)
macos_check=(libz3-4 libedit2 libxml2)
counts=(valgrind)
kernels=(clang-19) # runs Metal kernels on the CPU; 20 to 22 do as well

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }
ask() { # question: yes without a terminal, else what the user answers
  [ -t 0 ] && [ -t 1 ] || return 0
  local answer
  read -r -p "$1 [Y/n] " answer
  case $answer in '' | y* | Y*) ;; *) return 1 ;; esac
}

# what LOG COMMAND…: runs quietly, says that it still runs every 20 seconds and how long it took; the log's tail on failure.
quietly() {
  local what=$1 log=$2 start=$SECONDS pid ticker rc=0
  shift 2
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  (while sleep 20; do say "  … $what, $((SECONDS - start)) s: $(tail -n 1 "$log" | cut -c1-90)"; done) &
  ticker=$!
  wait $pid || rc=$?
  { kill $ticker && wait $ticker; } 2>/dev/null || true
  if [ $rc -ne 0 ]; then
    tail -n 20 "$log" >&2
    die "✗ $what failed; to repeat it: $*"
  fi
  say "✓ $what  $((SECONDS - start)) s"
}

has_display() { [ "$(uname)" = Darwin ] || [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; }

debian_packages() {
  local wanted=("${base[@]}") missing=() package status as_root=()
  case $task in
    run) ! has_display || wanted+=("${window[@]}") ;;
    setup) wanted+=("${window[@]}") ;;
    test | shots) wanted+=("${window[@]}" "${tests[@]}") ;;
    bench-count) wanted+=("${counts[@]}") ;;
    ci) wanted+=("${window[@]}" "${tests[@]}" "${macos_check[@]}") ;;
  esac
  local clang
  case $task in
    test | shots | ci)
      for clang in clang-19 clang-20 clang-21 clang-22; do
        ! command -v $clang >/dev/null || kernels=()
      done
      wanted+=(${kernels[@]+"${kernels[@]}"}) ;;
  esac
  status=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)
  for package in "${wanted[@]}"; do
    grep -qx "$package installed" <<<"$status" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "Missing system packages: ${missing[*]}"
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "Install them as root, then repeat: $install"
    as_root=(sudo)
    if ! sudo -n true 2>/dev/null; then
      [ -t 0 ] || die "sudo wants a password here. Install them, then repeat: sudo $install"
    fi
  fi
  ask "Install them with apt-get?" || die "Not installed. To do it yourself: ${as_root[*]} $install"
  [ ${#as_root[@]} -eq 0 ] || sudo -v
  local log
  log=$(mktemp)
  quietly "package lists" "$log" ${as_root[@]+"${as_root[@]}"} apt-get update -q
  quietly "system packages (${#missing[@]}, with what they need)" "$log" ${as_root[@]+"${as_root[@]}"} \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
  rm -f "$log"
}

other_linux() { # no apt: name what is needed, in Debian's words
  local tool
  for tool in cc curl pkg-config python3; do
    command -v $tool >/dev/null || die "Missing: $tool. Debian's names of all that is needed: ${base[*]} ${window[*]}"
  done
  if [ "$task" != run ] || has_display; then
    pkg-config --exists webkit2gtk-4.1 librsvg-2.0 ||
      die "Missing: the development files of webkit2gtk 4.1, librsvg, libayatana-appindicator or libxdo (Debian: ${window[*]})"
  fi
}

macos() {
  xcode-select -p >/dev/null 2>&1 || die "Tidegate needs Apple's command line tools. Run: xcode-select --install
and repeat when they are installed."
}

wanted_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }
rust_is_new_enough() {
  local have want
  have=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  want=$(wanted_rust)
  [ -n "$have" ] && [ $((${have% *} * 1000 + ${have#* })) -ge $((${want%.*} * 1000 + ${want#*.})) ]
}

rust() {
  [ ! -d "$HOME/.cargo/bin" ] || export PATH="$HOME/.cargo/bin:$PATH"
  ! { command -v cargo >/dev/null && rust_is_new_enough; } || return 0
  local want log
  want=$(wanted_rust)
  log=$(mktemp)
  if command -v rustup >/dev/null; then
    ask "Rust $want or newer is needed. Update it with rustup?" || die "Not updated. To do it yourself: rustup update stable"
    quietly "Rust" "$log" rustup update stable
    rust_is_new_enough || export RUSTUP_TOOLCHAIN=stable
  else
    ask "Rust $want or newer is needed. Install it with rustup (https://rustup.rs) into ~/.cargo and ~/.rustup?" ||
      die "Not installed. See https://rustup.rs"
    curl --proto '=https' --tlsv1.2 -fsSL --connect-timeout 15 https://sh.rustup.rs -o "$log.sh" && grep -q '^#!/bin/sh' "$log.sh" ||
      die "The Rust installer cannot be reached. Install Rust $want or newer (https://rustup.rs), then repeat."
    quietly "Rust" "$log" sh "$log.sh" -y --profile default
    rm -f "$log.sh"
    export PATH="$HOME/.cargo/bin:$PATH"
  fi
  rm -f "$log"
  rust_is_new_enough || die "$(rustc --version 2>&1) is older than Rust $want, which Tidegate needs."
}

if [ "$(uname)" = Darwin ]; then
  macos
elif command -v apt-get >/dev/null; then
  debian_packages
else
  other_linux
fi
rust
quiet=--quiet
[ -x "${CARGO_TARGET_DIR:-target}/debug/xtask" ] || quiet= # the first build fetches a few crates and takes some seconds
exec cargo run $quiet --package xtask -- "$@"
