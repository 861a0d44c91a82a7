#!/usr/bin/env bash
# Records what this machine measures: one dated directory of JSON per machine and day. Run it on an otherwise idle machine.
# usage: benchmarks/record.sh [NAME]      NAME of the machine, default: the CPU's
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release
sparrow=target/release/sparrow
name=${1:-$("$sparrow" doctor --format json | sed -n 's/^  "cpu": "\(.*\)",$/\1/p' | tr -cs 'A-Za-z0-9' '-' | sed 's/-*$//')}
out="benchmarks/$(date +%F)-$name"
mkdir -p "$out"

record() { # record FILE COMMAND...: the command beside its output
    local file=$1
    shift
    echo "sparrow $*" >&2
    "$sparrow" "$@" --format json >"$out/$file.json.tmp"
    mv "$out/$file.json.tmp" "$out/$file.json"
    echo "$file: sparrow $* --format json" >>"$out/commands.txt"
}

: >"$out/commands.txt"
record doctor doctor
record demo bench
record demo-batch-4 bench --batch 4
record llama-3.2-1b bench --shape llama-3.2-1b --active 0.1
record llama-3.2-3b bench --shape llama-3.2-3b --active 0.1
record llama-3.2-3b-prompt-512 bench --shape llama-3.2-3b --prompt-tokens 512 --gen-tokens 2
record llama-3.2-3b-profile profile --shape llama-3.2-3b --active 0.1 --prompt-tokens 512 --gen-tokens 8
record kernels bench --kernels
record demo-quality eval
record doctor-after doctor
echo "recorded in $out" >&2
