# Control groups of versions 1 and 2 for the scripts beside this one, which source it. As root.

# group_make CONTROLLER NAME: prints the folder of a new group. In version 1 it is made below this shell's own, whose limits
# go on to hold; in version 2 below the root, because a group with processes can't have groups below it.
group_make() {
  local mount folder
  if mount=$(awk -v want="$1" '$3 == "cgroup" && (","$4",") ~ ","want"," { print $2; exit }' /proc/mounts) && [ -n "$mount" ]; then
    folder=$mount$(awk -F: -v want="$1" '(","$2",") ~ ","want"," { print $3; exit }' /proc/self/cgroup)/$2
  else
    mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    [ -n "$mount" ] || { echo "there are no control groups here" >&2; return 1; }
    echo "+$1" >"$mount/cgroup.subtree_control"
    folder=$mount/$2
  fi
  mkdir "$folder" || return 1
  echo "$folder"
}

# group_remove FOLDER: ends what still runs in it, and removes it.
group_remove() {
  local tries=50 pid
  while ! rmdir "$1" 2>/dev/null; do
    [ "$tries" -gt 0 ] || { echo "$1 could not be removed" >&2; return 1; }
    while read -r pid; do kill -KILL "$pid" 2>/dev/null; done <"$1/cgroup.procs"
    tries=$((tries - 1))
    sleep 0.1
  done
}

# run_in FOLDER COMMAND…: replaces this (sub)shell.
run_in() {
  echo "$BASHPID" >"$1/cgroup.procs"
  shift
  exec "$@"
}

# The program to measure: TIDEGATE, or the newest that was built here.
tidegate_binary() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  # shellcheck disable=SC2012
  [ -n "${TIDEGATE:-}" ] || TIDEGATE=$(ls -t "$root"/target/{release,debug}/tidegate 2>/dev/null | head -1)
  [ -x "$TIDEGATE" ] || { echo "there is no tidegate yet: cargo build --release -p cli" >&2; return 1; }
  echo "$TIDEGATE"
}
