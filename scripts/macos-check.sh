#!/usr/bin/env bash
# Type-checks a cargo workspace for aarch64-apple-darwin on Linux, without a Mac, an Apple SDK or a rustup target.
#
#   macos-check.sh [cargo check args]           e.g. macos-check.sh --workspace --all-targets
#   macos-check.sh clippy [cargo clippy args]   e.g. macos-check.sh clippy --workspace -- -D warnings
#   (`cargo xtask macos-check [clippy]` gives these arguments)
#   macos-check.sh setup                        only prepares the cache
#
# How:    With the Rust of macos-cross.sh. C code is not compiled: a stand-in for clang writes empty objects.
# Leaves: target/macos-check in the workspace, beside the cache.
# Time:   first run about 1 minute on 2 cores, plus the check of your dependencies (5 minutes for tauri and candle);
#         then 1 to 4 seconds.
set -euo pipefail
. "$(dirname "$0")/macos-cross.sh"

fake_clang() { # stands in for clang: preprocesses (build scripts ask which compiler it is), compiles to empty objects
  mkdir -p "$cache/bin" "$cache/MacOSX.sdk"
  cat >"$cache/bin/fake-clang.tmp.$$" <<'SH'
#!/bin/sh
out= pre= c= keep=
while [ $# -gt 0 ]; do
  case $1 in
    --version|-v) echo "Apple clang version 17.0.0"; echo "Target: arm64-apple-darwin"; exit 0 ;;
    '-?'|-print-*) exit 1 ;; # asked by build scripts to tell other compilers apart
    -dumpmachine) echo arm64-apple-darwin; exit 0 ;;
    -E) pre=1 ;;
    -c|-S) c=1 ;;
    -o) shift; out=$1 ;;
    -o?*) out=${1#-o} ;;
    -I) shift; keep="$keep -I$1" ;;
    -[ID]?*|*.c|*.h) keep="$keep $1" ;;
  esac
  shift
done
if [ -n "$pre" ]; then # the paths of build scripts hold no spaces
  exec cc -E -D__clang__=1 -D__APPLE__=1 -D__MACH__=1 -D__aarch64__=1 -U__x86_64__ -U__linux__ $keep ${out:+-o "$out"}
fi
[ -n "$out" ] || { [ -n "$c" ] && exit 0; out=a.out; }
: >"$out"
SH
  chmod +x "$cache/bin/fake-clang.tmp.$$"
  mv "$cache/bin/fake-clang.tmp.$$" "$cache/bin/fake-clang"
}

prepare fake_clang
[ "${1-}" != setup ] || exit 0

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/macos-check
export CC_aarch64_apple_darwin=$cache/bin/fake-clang CXX_aarch64_apple_darwin=$cache/bin/fake-clang
export AR_aarch64_apple_darwin=ar SDKROOT=$cache/MacOSX.sdk
if [ "${1-}" = clippy ]; then
  shift
  # cargo-clippy takes the clippy-driver that lies beside it
  exec "$rust/usr/bin/cargo-clippy" clippy --target $target "$@"
fi
exec "$CARGO" check --target $target "$@"
