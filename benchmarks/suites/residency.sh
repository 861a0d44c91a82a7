#!/usr/bin/env bash
# Measures the weight cache: updating it against rebuilding a packed buffer, and decoding a model larger than the memory it
# may use from the cache against decoding it mapped, in turns. Run it on an otherwise idle machine, as root (the limit is a
# memory cgroup; page cache counts). Takes 7 GB of disk.
# usage: benchmarks/weight-cache.sh OUT [MODEL] [LIMIT]     MODEL: where to write the 3B shape; LIMIT: default 3500M
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?where to write}") model=${2:-$(mktemp -d)/llama-3.2-3b} limit=${3:-3500M}
sparrow=${CARGO_TARGET_DIR:-target}/release/sparrow
[ -x "$sparrow" ] || cargo build --release
mkdir -p "$out"
group=/sys/fs/cgroup/memory/sparrow-bench # version 1; with version 2 systemd makes one

limited() { # limited COMMAND...: with at most $limit of memory, page cache included
    if [ -d /sys/fs/cgroup/memory ]; then
        mkdir -p "$group"
        echo "$limit" >"$group/memory.limit_in_bytes"
        (echo $BASHPID >"$group/cgroup.procs" && exec "$@")
    else
        systemd-run --scope --quiet -p MemoryMax="$limit" -p MemorySwapMax=0 "$@"
    fi
}

forget() { # the page cache's part of the model: what is cached already would count for nobody
    for file in "$model"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
}

[ -d "$model" ] || "$sparrow" synth --shape llama-3.2-3b --neuron-major -o "$model"
decode() { # decode FILE SELECTOR WEIGHTS: one run after a warm one, under the limit
    forget
    limited "$sparrow" bench -m "$model" --selector "$2" --weights "$3" --prompt-tokens 1 --gen-tokens 6 --runs 1 \
        --format json >"$out/$1.json"
    echo "$1: limit $limit, sparrow bench --selector $2 --weights $3 --prompt-tokens 1 --gen-tokens 6 --runs 1" >>"$out/commands.txt"
}

: >"$out/commands.txt"
cargo run --release -q -p sparrow --example weight_cache >"$out/weight-cache.txt"
for turn in 1 2 3; do
    decode "mmap-$turn" forced:active=0.1,overlap=0.9 mmap
    decode "cache-$turn" forced:active=0.1,overlap=0.9 cache:0.2
done
decode mmap-dense dense mmap
[ ! -d "$group" ] || rmdir "$group"
grep -H -e decode_tokens_per_s -e storage_bytes_per_token -e peak_rss_bytes "$out"/*.json
