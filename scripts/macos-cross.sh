#!/usr/bin/env bash
# What macos-check.sh and macos-link.sh share: Debian's newer Rust (rustc-web) unpacked into the cache, never installed, and
# the standard library for aarch64-apple-darwin built from its sources once. Sourced, not run.
#
# Needs:  Debian 12 (tried on x86_64 only), apt, a cargo on PATH, gcc and binutils (for build scripts). No root.
# Leaves: about 620 MB in ${XDG_CACHE_HOME:-~/.cache}/tidegate/cross. To take a newer Rust, delete it.

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

prepare() { # runs each of "$@" while the cache is locked, and exports where cargo finds the compiler
  local tool step missing
  for tool in apt-get apt-cache dpkg-deb cargo cc ar flock; do
    command -v $tool >/dev/null || die "needs $tool"
  done
  CARGO=$(rustup which cargo 2>/dev/null || command -v cargo) # rustup's own proxy would bring its own rustc
  export CARGO RUSTC_WRAPPER=
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
  rm -rf "$cache"/{new,std,lld}.?????? # left by a run that was stopped
  get_rust
  libs=$(echo "$rust"/usr/lib/*-linux-gnu)
  export LD_LIBRARY_PATH=$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} RUSTC="$rust/usr/bin/rustc" RUSTDOC="$rust/usr/bin/rustdoc"
  missing=$(ldd "$RUSTC" "$libs"/librustc_driver-*.so | sed -n 's/^\s*\(\S*\) => not found/\1/p' | sort -u)
  [ -z "$missing" ] || die "rustc-web lacks ${missing//$'\n'/ } (apt-get install libz3-4 libedit2 libxml2)"
  get_std
  for step; do "$step"; done
  exec 9>&-
  root=$(dirname "$("$CARGO" locate-project --workspace --message-format plain)")
  unset CARGO_BUILD_TARGET RUSTC_WORKSPACE_WRAPPER
}
