#!/usr/bin/env bash
# Runs a command and, for some seconds in the middle, gives it a part of the processor only: what heat does, on any Linux
# machine. As root.
#
#   throttle.sh [-p PERCENT] [-a AFTER_S] [-f FOR_S] COMMAND…
#   throttle.sh -a 8 -f 8 target/release/tidegate bench --runs 1 --tokens 600 --trace target/throttle.jsonl
#
# PERCENT is of all cores (30), from AFTER_S (10) on, for FOR_S (10). With `--trace FILE` in the command, AFTER_S counts
# from the first tokens on, and it tells the median speed before, while and after, and the usual one beside it.
set -euo pipefail
. "$(dirname "$0")/cgroup.sh"

percent=30 after=10 for=10
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

trace= previous=
for argument in "$@"; do
  [ "$previous" != --trace ] || trace=$argument
  previous=$argument
done
[ -z "$trace" ] || rm -f "$trace"

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
if [ -n "$trace" ]; then
  until grep -qs '"decode_tokens_per_sec":[0-9]' "$trace"; do
    kill -0 "$command" 2>/dev/null || { echo "it ended before it wrote anything" >&2; exit 1; }
    sleep 0.2
  done
fi
sleep "$after"
throttle
echo "throttled to $percent % of $(nproc) cores after $after s" >&2
sleep "$for"
lift
echo "lifted after $((after + for)) s" >&2
status=0
wait "$command" || status=$?
command=

[ -z "$trace" ] || python3 - "$trace" "$after" "$for" <<'PY'
import json, statistics, sys

path, after, duration = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
lines = [json.loads(line) for line in open(path)]
start = after + next(line["seconds"] for line in lines if line["decode_tokens_per_sec"] is not None)
end = start + duration
# The speed shown is that of the last two seconds.
for name, first, last in [("before", 0, start), ("throttled", start + 2, end), ("after", end + 2, float("inf"))]:
    window = [line for line in lines if first <= line["seconds"] < last]
    def median(key):
        values = [line[key] for line in window if line[key] is not None]
        return f"{statistics.median(values):5.1f}" if values else "    —"
    print(f"{name:<10} {median('decode_tokens_per_sec')} tokens/s, usually {median('baseline_tokens_per_sec')}")
PY
exit "$status"
