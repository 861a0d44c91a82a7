#!/usr/bin/env bash
# From a clean clone to benchmarks/peers/results: builds Sparrow, installs the other engines, makes the models, compares.
# usage: benchmarks/peers/run.sh [SHAPE [OPTION of compare.py]...]      SHAPE: one that `sparrow synth` knows
# What is made stays in $PEERS_DIR (default: target/peers) and is used again.
set -euo pipefail
cd "$(dirname "$0")/../.."
shape=${1:-llama-3.2-3b}
work=${PEERS_DIR:-target/peers}
models=$work/$shape
binaries=${CARGO_TARGET_DIR:-target}/release
cargo build --release
cargo build --release -p sparrow --example logits
[ -e "$work/venv/llama.cpp-build" ] || benchmarks/peers/install.sh "$work/venv"
mkdir -p "$models"
[ -e "$models/checkpoint" ] || "$binaries/sparrow" synth --shape "$shape" --dtype bf16 -o "$models/checkpoint"
"$work/venv/bin/python" benchmarks/peers/make_gguf.py "$models/checkpoint" "$models"
"$work/venv/bin/python" benchmarks/peers/compare.py "$models" --shape "$shape" --binaries "$binaries" \
    --out benchmarks/peers/results "${@:2}"
