#!/usr/bin/env bash
# Measures pruned weights and the pruned cache at the shape of Llama 3.2 3B (random weights, so speed only), dense and packed rows
# in turns, and packing a checkpoint of that shape. Run it on an otherwise idle machine with 22 GB of memory and 14 GB of disk.
# usage: benchmarks/weight-sparsity.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?where to write}")
cargo build --release
cargo build --release -p sparrow --example kv_decode
cargo build --release -p sparrow-kernels --examples
target=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$out"
: >"$out/commands.txt"

record() { # record FILE COMMAND...: the command beside its output
    local file=$1
    shift
    echo "$*" >&2
    "$target/$@" >"$out/$file.tmp"
    mv "$out/$file.tmp" "$out/$file"
    echo "$file: $*" >>"$out/commands.txt"
}

formats="--weights-format dense --weights-format auto --format json"
shape="bench --shape llama-3.2-3b"
record doctor.json sparrow doctor --format json
record bf16-50.json sparrow $shape --zeros 0.5 --prompt-tokens 16 --gen-tokens 24 --runs 5 $formats
record bf16-70.json sparrow $shape --zeros 0.7 --prompt-tokens 16 --gen-tokens 24 --runs 5 $formats
record int8-50.json sparrow $shape --dtype int8 --zeros 0.5 --prompt-tokens 16 --gen-tokens 24 --runs 5 $formats
record int4-50.json sparrow $shape --dtype int4 --zeros 0.5 --prompt-tokens 16 --gen-tokens 24 --runs 5 $formats
record prompt-512.json sparrow $shape --zeros 0.5 --prompt-tokens 512 --gen-tokens 2 --runs 3 $formats
record prompt-512-int8.json sparrow $shape --dtype int8 --zeros 0.5 --prompt-tokens 512 --gen-tokens 2 --runs 3 $formats
record batch-16.json sparrow $shape --zeros 0.5 --batch 16 --prompt-tokens 16 --gen-tokens 12 --runs 3 $formats
record kernels.txt examples/bitmap
record attention.txt examples/sparse_attention
record kv-decode.txt examples/kv_decode

models=$(mktemp -d -p "${TMPDIR:-/tmp}")
trap 'rm -rf "$models"' EXIT
"$target/sparrow" synth --shape llama-3.2-3b --zeros 0.5 -o "$models/dense"
# Seconds, and peak memory, of which the original's mapped pages are a part.
measured() { # measured COMMAND...
    "$@" >/dev/null 2>&1 &
    local process=$! start=$EPOCHREALTIME peak=0 now
    while now=$(sed -n 's/^VmHWM:\s*\([0-9]*\) kB/\1/p' "/proc/$process/status" 2>/dev/null) && [ -n "$now" ]; do
        peak=$now
        sleep 0.2
    done
    wait "$process"
    echo "$(bc <<<"$EPOCHREALTIME - $start") s, $((peak / 1000)) MB: ${*##*/}"
}
measured "$target/sparrow" pack -m "$models/dense" -o "$models/packed" >"$out/pack.txt"
measured "$target/sparrow" pack -m "$models/dense" -o "$models/packed-int8" --dtype int8 >>"$out/pack.txt"
du -sb "$models"/*  | sed "s|$models/||" >>"$out/pack.txt"
"$target/sparrow" inspect "$models/packed" | sed "s|$models/||" >"$out/inspect.txt"
echo "recorded in $out" >&2
