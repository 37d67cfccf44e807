#!/usr/bin/env bash
# Runs `tidegate bench --pressure` in a memory control group with a swap file of its own, and a node outside of it: shows on
# any Linux machine what memory pressure does to answers, without bringing the machine itself under pressure. As root.
#
#   pressure-bench.sh MODEL [bench arguments]       e.g. pressure-bench.sh models/*.gguf --out target/pressure
#   LIMIT_MIB=1536 SWAP_MIB=2048 pressure-bench.sh …  memory of the group, size of the swap file
#   TIDEGATE=target/release/tidegate                the program; otherwise the newest in target/
#   SWAP_DIR=/var/tmp                               where the swap file lies while it runs: on a disk, not in memory
#
# Whatever happens, the processes are ended, the swap file is switched off and removed, and so is the group. Nothing but
# the group swaps, unless the machine itself runs out of memory meanwhile.
set -euo pipefail
. "$(dirname "$0")/cgroup.sh"

[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "this makes a swap file and a control group: run it as root" >&2; exit 1; }
model=$1
shift
tidegate=$(tidegate_binary)
limit=$((${LIMIT_MIB:-1536} << 20))
work=$(mktemp -d "${SWAP_DIR:-/var/tmp}/tidegate-pressure.XXXXXX")
group= node= bench=

clean_up() {
  trap - EXIT INT TERM
  set +e
  if [ -n "$bench" ]; then kill -KILL "$bench"; wait "$bench"; fi 2>/dev/null
  if [ -n "$node" ]; then kill -TERM "$node"; wait "$node"; fi 2>/dev/null
  [ -n "$group" ] && group_remove "$group"
  swapoff "$work/swap" 2>/dev/null
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Written in full: a file with holes can't be swapped to.
dd if=/dev/zero of="$work/swap" bs=1M count="${SWAP_MIB:-2048}" status=none
chmod 600 "$work/swap"
mkswap "$work/swap" >/dev/null
swapon "$work/swap"
group=$(group_make memory "tidegate-pressure-$$")
if [ -e "$group/memory.max" ]; then
  echo "$limit" >"$group/memory.max"
else
  echo "$limit" >"$group/memory.limit_in_bytes"
fi

"$tidegate" serve --listen 127.0.0.1:0 --offload local --data "$work/node" --model "$model" 2>"$work/node.log" &
node=$!
for _ in $(seq 100); do
  url=$(sed -n 's/^listening on \(http[^ ]*\)$/\1/p' "$work/node.log")
  [ -z "$url" ] || break
  kill -0 "$node" 2>/dev/null || { cat "$work/node.log" >&2; exit 1; }
  sleep 0.1
done
[ -n "$url" ] || { echo "the node didn't start" >&2; exit 1; }

run_in "$group" "$tidegate" bench --pressure --data "$work/data" --model "$model" --node "$url" "$@" &
bench=$!
status=0
wait "$bench" || status=$?
bench=
echo
echo "decisions, the newest first:"
"$tidegate" log --data "$work/data" --limit 12 || true
exit "$status"
