#!/bin/sh
# Cuts the network to the node that writes an answer, and expects the answer to go on at the other one, to the same text as
# undisturbed. Linux, as root, with `ip` and python3: tests/network-cut.sh [TIDEGATE]
#
# Two nodes run in network namespaces of their own, each behind a link of its own; the front runs outside. One after the
# other, the node's end of the link goes down, the node's answers lead nowhere, and the front's own address changes: once
# with another node to go to, once with that node alone, where the answer goes on by a new connection. Links, namespaces and
# processes are gone at the end, whatever happens.
set -eu
cd "$(dirname "$0")/.."
program=${1:-target/debug/tidegate}
model=models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
[ -x "$program" ] || { echo "$program is missing: cargo build --package cli" >&2; exit 1; }
[ -e "$model" ] || { echo "$model is missing: cargo xtask setup fetches it" >&2; exit 1; }

name=tg$$
data=$(mktemp -d)
processes=
front=
export TIDEGATE_KEY=$name TIDEGATE_NODE_KEY=$name
clean_up() {
    trap '' INT TERM
    # shellcheck disable=SC2086 -- a list of numbers
    [ -z "$processes$front" ] || kill $processes $front 2>/dev/null || true
    wait 2>/dev/null || true
    for index in 1 2; do
        # The pair goes with one of its ends.
        ip link delete "$name-$index" 2>/dev/null || true
        ip netns delete "$name-$index" 2>/dev/null || true
    done
    rm -rf "$data"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

for index in 1 2; do
    ip netns add "$name-$index"
    ip link add "$name-$index" type veth peer name node netns "$name-$index"
    ip address add "10.213.$index.1/24" dev "$name-$index"
    ip link set "$name-$index" up
    ip -n "$name-$index" address add "10.213.$index.2/24" dev node
    ip -n "$name-$index" link set lo up
    ip -n "$name-$index" link set node up
    ip netns exec "$name-$index" "$program" serve --listen "10.213.$index.2:11500" --data "$data/$index" \
        --offload local --model "$model" 2>"$data/$index.log" &
    processes="$processes $!"
done

# Asks at URL; after 20 pieces of the answer COMMAND is run. Writes the text to FILE, and the longest pause to the screen.
ask() { # URL FILE COMMAND
    python3 - "$@" <<'PYTHON'
import json, os, subprocess, sys, time, urllib.request
url, file, command = sys.argv[1:]
question = "Explain in five sentences how a tide gate works and why nobody has to stand beside it."
body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 120, "stream": True}
request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["TIDEGATE_KEY"]})
deadline = time.monotonic() + 60
while True:
    try:
        reply = urllib.request.urlopen(request, timeout=180)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
pieces, longest, before, is_whole = [], 0, None, False
for line in reply:
    line = line.decode().strip()
    if not line.startswith("data: "):
        continue
    if line == "data: [DONE]":
        is_whole = True
        break
    for choice in json.loads(line[6:]).get("choices", []):
        if text := choice.get("delta", {}).get("content"):
            now = time.monotonic()
            longest, before = max(longest, now - (before or now)), now
            pieces.append(text)
            if len(pieces) == 20:
                subprocess.run(command, shell=True, check=True)
print(f"{len(pieces)} pieces, longest pause {longest:.2f} s")
open(file, "w").write("".join(pieces))
sys.exit(0 if is_whole else "the answer broke off")
PYTHON
}

echo 'undisturbed:'
ask http://10.213.1.2:11500 "$data/expected" true
ask http://10.213.2.2:11500 "$data/same" true >/dev/null
cmp "$data/expected" "$data/same"

cut() { # what, command that cuts, command that restores, nodes…
    echo "$1:"
    what=$2 back=$3
    shift 3
    # shellcheck disable=SC2046 -- an option for each node
    "$program" serve --listen 127.0.0.1:11599 --data "$data/front" --offload remote \
        $(printf -- '--node http://10.213.%s.2:11500 ' "$@") 2>"$data/front.log" &
    front=$!
    ask http://127.0.0.1:11599 "$data/text" "$what"
    sh -c "$back"
    "$program" log --json --data "$data/front" >"$data/decisions"
    kill $front
    wait $front 2>/dev/null || true
    # Its number may be another program's from now on.
    front=
    rm -r "$data/front"
    cmp "$data/expected" "$data/text"
    python3 -c 'import json, sys
kinds = [entry["kind"] for entry in reversed(json.load(open(sys.argv[1])))]
sys.exit(kinds != ["start", "lost", "move"] and f"the history says {kinds}")' "$data/decisions"
}

cut 'the link goes down' "ip -n $name-1 link set node down" "ip -n $name-1 link set node up" 1 2
cut 'answers lead nowhere' "ip -n $name-1 route add blackhole 10.213.1.1/32" "ip -n $name-1 route delete blackhole 10.213.1.1/32" 1 2
change="ip address add 10.213.1.3/25 dev $name-1 && ip address delete 10.213.1.1/24 dev $name-1"
change_back="ip address add 10.213.1.1/24 dev $name-1 && ip address delete 10.213.1.3/25 dev $name-1"
cut 'the address changes, and the node can be reached' "$change" "$change_back" 1 2
cut 'the address changes, and there is no other node' "$change" "$change_back" 1
echo 'nothing was lost and nothing doubled'
