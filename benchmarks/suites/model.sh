#!/usr/bin/env bash
# Records what this machine measures: one dated directory of JSON per machine and day. Run it on an otherwise idle machine.
# usage: benchmarks/record.sh [NAME]      NAME of the machine, default: the CPU's
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
sparrow=${CARGO_TARGET_DIR:-target}/release/sparrow
name=${1:-$("$sparrow" doctor --format json | sed -n 's/^  "cpu": "\(.*\)",$/\1/p' | tr -cs 'A-Za-z0-9' '-' | sed 's/-*$//')}
out="benchmarks/$(date +%F)-$name"
mkdir -p "$out"

record() { # record FILE COMMAND...: the command beside its output
    local file=$1
    shift
    echo "sparrow $*" >&2
    "$sparrow" "$@" --format json >"$out/$file.json.tmp"
    mv "$out/$file.json.tmp" "$out/$file.json"
    echo "$file: ${SPARROW_ISA:+SPARROW_ISA=$SPARROW_ISA }sparrow $* --format json" >>"$out/commands.txt"
}

: >"$out/commands.txt"
record doctor doctor
record demo bench
record demo-batch-4 bench --batch 4
record demo-quantized bench --dtype int8,int4,int4-g128
record llama-3.2-3b bench --shape llama-3.2-3b --dtype bf16,int8,int4 --active 0.1 --gen-tokens 24
record llama-3.2-3b-f32 bench --shape llama-3.2-3b --dtype f32 --gen-tokens 8 --runs 2
record llama-3.2-3b-prompt-512 bench --shape llama-3.2-3b --dtype bf16,int8,int4 --prompt-tokens 512 --gen-tokens 2
SPARROW_ISA=avx512 record llama-3.2-3b-prompt-512-avx512 bench --shape llama-3.2-3b --prompt-tokens 512 --gen-tokens 2 --runs 2
record llama-3.2-3b-profile profile --shape llama-3.2-3b --active 0.1 --prompt-tokens 512 --gen-tokens 8
record kernels bench --kernels
record demo-quality eval
record doctor-after doctor
echo "recorded in $out" >&2
