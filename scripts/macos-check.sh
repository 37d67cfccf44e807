#!/usr/bin/env bash
# Type-checks a cargo workspace for aarch64-apple-darwin on Linux, without a Mac, an Apple SDK or a rustup target.
#
#   macos-check.sh [cargo check args]           e.g. macos-check.sh --workspace --all-targets
#   macos-check.sh clippy [cargo clippy args]   e.g. macos-check.sh clippy --workspace -- -D warnings
#   (`cargo xtask macos-check [clippy]` gives these arguments)
#   macos-check.sh setup                        only prepares the cache
#
# How:    Debian's newer Rust (rustc-web) is unpacked into the cache, never installed, and the standard library for
#         the target is built from its sources once. C code is not compiled: a stand-in for clang writes empty objects.
# Needs:  Debian 12 (tried on x86_64 only), apt, a cargo on PATH, gcc and binutils (for build scripts). No root.
# Leaves: about 620 MB in ${XDG_CACHE_HOME:-~/.cache}/tidegate/cross, and target/macos-check in the workspace.
#         To take a newer Rust, delete the cache.
# Time:   first run about 1 minute on 2 cores, plus the check of your dependencies (5 minutes for tauri and candle);
#         then 1 to 4 seconds.
set -euo pipefail

target=aarch64-apple-darwin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/cross
rust=$cache/rust
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# apt with its own package lists in the cache: needs no root and changes nothing on the system.
apt_() { "apt-$1" -qq -o APT::Sandbox::User=root -o Dir::State::lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" "${@:2}"; }
dep() { apt_ cache depends "$1" | sed -n "s/^ *Depends: \($2[^ ]*\).*/\1/p" | head -n 1; }

get_rust() { # Debian's rustc-web, its clippy and the sources of std -> $rust
  [ ! -e "$rust/.ok" ] || return 0
  local new std llvm deb
  new=$(mktemp -d "$cache/new.XXXXXX")
  mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" "$new/debs"
  say "fetching Debian's rustc-web (about 140 MB)"
  apt_ get update >&2
  std=$(dep libstd-rust-web-dev libstd-rust-web-)
  llvm=$(dep "$std" libllvm)
  (cd "$new/debs" && apt_ get download rustc-web libstd-rust-web-dev "$std" "$llvm" rust-web-clippy rust-web-src >&2)
  for deb in "$new"/debs/*.deb; do
    case $deb in
      */rust-web-src*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new" --wildcards './usr/src/*/library' './usr/lib/*' ;;
      *) dpkg-deb -x "$deb" "$new" ;;
    esac
  done
  rm -rf "${new:?}/debs" "${new:?}/usr/share" "$rust"
  touch "$new/.ok"
  mv "$new" "$rust"
}

get_std() { # std for the target -> the unpacked sysroot, so that no later build needs -Zbuild-std
  local lib=$rust/usr/lib/rustlib/$target/lib tmp
  [ ! -e "$lib/.ok" ] || return 0
  say "building std for $target (about a minute)"
  tmp=$(mktemp -d "$cache/std.XXXXXX")
  mkdir "$tmp/src"
  printf '[package]\nname = "empty"\nedition = "2021"\n[workspace]\n' >"$tmp/Cargo.toml"
  : >"$tmp/src/lib.rs"
  (cd "$tmp" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET RUSTC_BOOTSTRAP=1 \
    CARGO_TARGET_DIR="$tmp/target" "$CARGO" build -q --release -Zbuild-std=std,test,panic_abort --target $target)
  rm -rf "$lib"
  mkdir -p "$lib"
  rm -f "$tmp/target/$target"/release/deps/libempty-*
  cp "$tmp/target/$target"/release/deps/*.rlib "$lib/"
  touch "$lib/.ok"
  rm -rf "$tmp"
}

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

for tool in apt-get apt-cache dpkg-deb cargo cc ar flock; do
  command -v $tool >/dev/null || die "needs $tool"
done
CARGO=$(rustup which cargo 2>/dev/null || command -v cargo) # rustup's own proxy would bring its own rustc
export CARGO RUSTC_WRAPPER=
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
rm -rf "$cache"/{new,std}.?????? # left by a run that was stopped
get_rust
libs=$(echo "$rust"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} RUSTC="$rust/usr/bin/rustc" RUSTDOC="$rust/usr/bin/rustdoc"
missing=$(ldd "$RUSTC" "$libs"/librustc_driver-*.so | sed -n 's/^\s*\(\S*\) => not found/\1/p' | sort -u)
[ -z "$missing" ] || die "rustc-web lacks ${missing//$'\n'/ } (apt-get install libz3-4 libedit2 libxml2)"
get_std
fake_clang
exec 9>&-
[ "${1-}" != setup ] || exit 0

root=$(dirname "$("$CARGO" locate-project --workspace --message-format plain)")
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/macos-check
export CC_aarch64_apple_darwin=$cache/bin/fake-clang CXX_aarch64_apple_darwin=$cache/bin/fake-clang
export AR_aarch64_apple_darwin=ar SDKROOT=$cache/MacOSX.sdk
unset CARGO_BUILD_TARGET RUSTC_WORKSPACE_WRAPPER
if [ "${1-}" = clippy ]; then
  shift
  # cargo-clippy takes the clippy-driver that lies beside it
  exec "$rust/usr/bin/cargo-clippy" clippy --target $target "$@"
fi
exec "$CARGO" check --target $target "$@"
