#!/usr/bin/env bash
# Links real Mach-O programs for aarch64-apple-darwin on Linux, and lists what they want of Apple's libraries. It shows that
# everything of ours links; the programs are not for shipping.
#
#   macos-link.sh [cargo build args]      e.g. macos-link.sh -p tidegate-desktop --bins
#   (`cargo xtask macos-link` gives these arguments, and holds the lists against what macOS has)
#   macos-link.sh setup                   only prepares the cache
#
# How:    With the Rust of macos-cross.sh, zig's clang for C, C++ and Objective-C, and Debian's ld64.lld. libSystem's symbols
#         are known, for zig brings their list: a wrong call of libc fails the link. For each framework asked for an empty
#         stub is made, so its symbols stay undefined. An Objective-C file that imports Apple's headers can't be compiled: it
#         is left out, and its functions are looked up in its text.
# Needs:  python3 with pip, beside what macos-cross.sh needs.
# Leaves: about 500 MB more in the cache, and target/macos-link in the workspace. Beside each program NAME there is
#         NAME.symbols: one `KIND SYMBOL` a line, of the kinds libSystem, left-out (in an Objective-C file that was left
#         out) and apple (all others).
# Time:   first run about 1 minute on 2 cores, plus a full build (4 minutes for tauri and candle); then seconds.
set -euo pipefail
. "$(dirname "$0")/macos-cross.sh"

sdk=$cache/MacOSX-stub.sdk
zig=ziglang==0.15.2

get_linker() { # Debian's ld64.lld, llvm-nm and llvm-objdump, of the LLVM that rustc-web already uses
  [ ! -e "$rust/.linker" ] || return 0
  local v tmp
  say "fetching Debian's ld64.lld and llvm-nm (about 20 MB)"
  v=$(basename "$rust"/usr/lib/*-linux-gnu/libLLVM.so.*.*)
  v=${v#libLLVM.so.} v=${v%%.*}
  tmp=$(mktemp -d "$cache/lld.XXXXXX")
  mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  apt_ get update >&2
  (cd "$tmp" && apt_ get download "lld-$v" "llvm-$v" >&2)
  dpkg-deb --fsys-tarfile "$tmp"/lld-*.deb | tar -x -C "$rust" "./usr/lib/llvm-$v/bin"
  dpkg-deb --fsys-tarfile "$tmp"/llvm-*.deb | tar -x -C "$rust" "./usr/lib/llvm-$v/bin/llvm-nm"
  rm -rf "$tmp"
  touch "$rust/.linker"
}

get_zig() { # zig's clang with the C headers of macOS -> $cache/zig
  [ ! -x "$cache/zig/ziglang/zig" ] || return 0
  say "fetching $zig (about 90 MB)"
  rm -rf "$cache/zig" "$cache/zig.new"
  python3 -m pip install -q --no-deps --root-user-action=ignore --target "$cache/zig.new" "$zig" >&2
  mv "$cache/zig.new" "$cache/zig"
}

write_tool() { cat >"$cache/bin/$1.tmp.$$"; chmod +x "$cache/bin/$1.tmp.$$"; mv "$cache/bin/$1.tmp.$$" "$cache/bin/$1"; }

write_tools() { # the compiler, archiver and linker that cargo is told to use; they read $TIDEGATE_CROSS_*
  mkdir -p "$cache/bin" "$sdk/usr/lib"
  local l
  for l in System System.B c m dl pthread; do
    ln -sf "$cache/zig/ziglang/lib/libc/darwin/libSystem.tbd" "$sdk/usr/lib/lib$l.tbd"
  done
  write_tool zcc <<'SH'
#!/usr/bin/env bash
# zig's clang for macOS, without the flags that zig doesn't know.
zig=$TIDEGATE_CROSS_CACHE/zig/ziglang/zig lang=cc out= objc= args=()
case $0 in *++) lang=c++ ;; esac
while (($#)); do
  case $1 in
    '-?') exit 1 ;;
    -arch | -target | -isysroot | --sysroot) shift ;;
    -arch=* | --target=* | -mmacos* | -fembed-bitcode | -g | -gdwarf*) ;;
    -o) out=$2; args+=("$1" "$2"); shift ;;
    *.m | *.mm) objc=$1; args+=("$1") ;;
    *) args+=("$1") ;;
  esac
  shift
done
cc() { "$zig" "$@" -target aarch64-macos.14.0 -fno-sanitize=undefined -w; }
if [ -n "$objc" ] && [ -n "$out" ] && ! cc $lang -E "$objc" >/dev/null 2>&1; then
  mkdir -p "$TIDEGATE_CROSS_OBJC" # it wants Apple's headers: an empty object in its place
  cp "$objc" "$TIDEGATE_CROSS_OBJC/${objc//\//_}"
  exec "$zig" cc -target aarch64-macos.14.0 -c -x c /dev/null -o "$out"
fi
cc $lang "${args[@]}"
SH
  ln -sf zcc "$cache/bin/zc++"
  write_tool zar <<'SH'
#!/bin/sh
exec "$TIDEGATE_CROSS_CACHE/zig/ziglang/zig" ar "$@"
SH
  # Called on the libraries among the dependencies; nothing here is worth stripping.
  write_tool rust-objcopy <<'SH'
#!/bin/sh
exit 0
SH
  write_tool lld <<'SH'
#!/usr/bin/env bash
# ld64.lld with a stub for each library of Apple's that is asked for; what no one defines stays undefined.
sdk=$TIDEGATE_CROSS_SDK
stub() { # path install-name
  [ ! -e "$sdk/$1" ] || return 0
  mkdir -p "$(dirname "$sdk/$1")"
  printf -- "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '%s'\n...\n" "$2" >"$sdk/$1.$$"
  mv "$sdk/$1.$$" "$sdk/$1"
}
prev= args=()
for a; do
  case $prev:$a in *:-flavor | -flavor:*) prev=$a; continue ;; esac
  args+=("$a")
  case $prev in
    -framework | -weak_framework | -needed_framework)
      stub "System/Library/Frameworks/$a.framework/$a.tbd" "/System/Library/Frameworks/$a.framework/Versions/A/$a" ;;
  esac
  case $a in -lobjc | -liconv | -lc++ | -lc++abi | -lcharset | -lz | -lbz2 | -lresolv | -lsqlite3 | -lproc | -lIOReport) stub "usr/lib/lib${a#-l}.tbd" "/usr/lib/lib${a#-l}.dylib" ;; esac
  prev=$a
done
exec "$TIDEGATE_CROSS_LLVM/ld64.lld" -syslibroot "$sdk" -undefined dynamic_lookup "${args[@]}"
SH
}

list() { # program: what it wants from outside -> program.symbols
  local symbol kind
  while read -r symbol; do
    if grep -qxF -e "$symbol" "$known"; then kind=libSystem
    elif [ -d "$objc" ] && grep -rqwF -e "${symbol#_}" "$objc"; then kind=left-out
    else kind=apple
    fi
    echo "$kind $symbol"
  done < <("$llvm/llvm-nm" -u -j "$1" | sort -u) >"$1.symbols"
  say "$1: $(cut -d' ' -f1 "$1.symbols" | sort | uniq -c | awk '{printf "%s %s, ", $1, $2}')"
  echo "$1.symbols"
}

prepare get_linker get_zig write_tools
[ "${1-}" != setup ] || exit 0

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/macos-link
llvm=$(dirname "$rust"/usr/lib/llvm-*/bin/ld64.lld) objc=$CARGO_TARGET_DIR/objective-c-left-out
export ZIG_GLOBAL_CACHE_DIR=$cache/zig-cache TIDEGATE_CROSS_CACHE=$cache TIDEGATE_CROSS_SDK=$sdk TIDEGATE_CROSS_LLVM=$llvm TIDEGATE_CROSS_OBJC=$objc
export CC_aarch64_apple_darwin=$cache/bin/zcc CXX_aarch64_apple_darwin=$cache/bin/zc++ AR_aarch64_apple_darwin=$cache/bin/zar
export PATH=$cache/bin:$PATH SDKROOT=$sdk MACOSX_DEPLOYMENT_TARGET=14.0
export CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$cache/bin/lld # rustc knows by its name how to call it
export CARGO_PROFILE_DEV_DEBUG=${CARGO_PROFILE_DEV_DEBUG:-0} CARGO_PROFILE_DEV_STRIP=false CARGO_PROFILE_RELEASE_STRIP=false

programs=$(mktemp) known=$(mktemp)
trap 'rm -f "$programs" "$known"' EXIT
"$CARGO" build --target $target --message-format json-render-diagnostics "$@" >"$programs"
tr -s " ,[]'\"" '\n' <"$sdk/usr/lib/libSystem.tbd" | grep '^_' | sort -u >"$known"
echo dyld_stub_binder >>"$known"
while read -r program; do
  list "$program"
done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$programs" | sort -u)
