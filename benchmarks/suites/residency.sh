# residency: a model larger than the memory it may use, from the weight cache against mapped: as root, 7 GB of disk; argument: LIMIT
# shellcheck shell=bash disable=SC2154
# The limit (default 3500M) is a memory cgroup; page cache counts.

limit=${1:-${quick:+2000M}}
limit=${limit:-3500M}
model=$scratch/$shape
group=/sys/fs/cgroup/memory/sparrow-bench # version 1; with version 2 systemd makes one
trap '[ ! -d "$group" ] || rmdir "$group"' EXIT

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

decode() { # decode FILE SELECTOR WEIGHTS: one run after a warm one, under the limit
    forget
    local command=(sparrow bench -m "$model" --selector "$2" --weights "$3" --prompt-tokens 1 --gen-tokens 6 --runs 1 --format json)
    limited "${command[@]}" >"$out/$1.json"
    note "$1.json" "limit $limit," "${command[@]}"
}

sparrow synth --shape "$shape" --neuron-major -o "$model"
[ -n "$quick" ] || record weight-cache.txt weight_cache
for turn in 1 2 3; do
    decode "mmap-$turn" forced:active=0.1,overlap=0.9 mmap
    decode "cache-$turn" forced:active=0.1,overlap=0.9 cache:0.2
    [ -z "$quick" ] || break
done
decode mmap-dense dense mmap
rm -r "$model"
