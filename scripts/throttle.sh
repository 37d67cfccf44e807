#!/usr/bin/env bash
# Runs a command and, for some seconds in the middle, gives it a part of the processor only: what heat does, on any Linux
# machine. As root.
#
#   throttle.sh [-p PERCENT] [-a AFTER_S] [-f FOR_S] COMMAND…
#   throttle.sh -p 30 -a 20 -f 20 target/release/tidegate bench --runs 6 --tokens 256 --trace target/throttle.jsonl
#
# PERCENT is of all cores (30), from AFTER_S (20) on, for FOR_S (20). With `--trace FILE` in the command it tells the
# median speed before, while and after, and the usual one beside it.
set -euo pipefail
. "$(dirname "$0")/cgroup.sh"

percent=30 after=20 for=20
while getopts p:a:f: option; do
  case $option in
    p) percent=$OPTARG ;;
    a) after=$OPTARG ;;
    f) for=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "this makes a control group: run it as root" >&2; exit 1; }

group= command=
clean_up() {
  trap - EXIT INT TERM
  set +e
  [ -n "$command" ] && kill -TERM "$command" 2>/dev/null && wait "$command"
  [ -n "$group" ] && group_remove "$group"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

group=$(group_make cpu "tidegate-throttle-$$")
period=100000
quota=$((period * $(nproc) * percent / 100))

throttle() {
  if [ -e "$group/cpu.max" ]; then
    echo "$quota $period" >"$group/cpu.max"
  else
    echo "$period" >"$group/cpu.cfs_period_us"
    echo "$quota" >"$group/cpu.cfs_quota_us"
  fi
}

lift() {
  if [ -e "$group/cpu.max" ]; then echo max >"$group/cpu.max"; else echo -1 >"$group/cpu.cfs_quota_us"; fi
}

run_in "$group" "$@" &
command=$!
sleep "$after"
throttle
echo "throttled to $percent % of $(nproc) cores after $after s" >&2
sleep "$for"
lift
echo "lifted after $((after + for)) s" >&2
status=0
wait "$command" || status=$?
command=

trace=
while [ $# -gt 1 ]; do
  [ "$1" != --trace ] || trace=$2
  shift
done
[ -z "$trace" ] || python3 - "$trace" "$after" "$((after + for))" <<'PY'
import json, statistics, sys

path, start, end = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
lines = [json.loads(line) for line in open(path)]
# The speed shown is that of the last two seconds.
for name, first, last in [("before", 0, start), ("throttled", start + 2, end), ("after", end + 2, float("inf"))]:
    window = [line for line in lines if first <= line["seconds"] < last]
    def median(key):
        values = [line[key] for line in window if line[key] is not None]
        return f"{statistics.median(values):5.1f}" if values else "    —"
    print(f"{name:<10} {median('decode_tokens_per_sec')} tokens/s, usually {median('baseline_tokens_per_sec')}")
PY
exit "$status"
