#!/usr/bin/env bash
# The four models that quality is measured on, as bf16 Hugging Face directories: get.sh [NAME...]
#
# They go to $SPARROW_MODELS/NAME (default ~/.cache/sparrow-models/NAME), from the hub, unless that folder has the directory already
# or NAME.gguf, which `sparrow convert` (or the program in $SPARROW) turns into one. A gated model (gemma) needs its terms accepted
# on the hub and a token in $HF_TOKEN. Needs curl. What stands there whole is left as it is.
set -euo pipefail

declare -A ids=(
    [smollm2]=HuggingFaceTB/SmolLM2-135M-Instruct
    [gemma]=google/gemma-3-270m
    [qwen05]=Qwen/Qwen2.5-Coder-0.5B-Instruct
    [qwen15]=Qwen/Qwen2.5-Coder-1.5B-Instruct
)
names=(smollm2 gemma qwen05 qwen15)
files=(config.json generation_config.json tokenizer_config.json tokenizer.json model.safetensors)
models=${SPARROW_MODELS:-$HOME/.cache/sparrow-models}
hub=${HF_ENDPOINT:-https://huggingface.co}

download() { # download ID DIR: whole, or nothing
    local partial=$2.partial file
    mkdir -p "$partial"
    for file in "${files[@]}"; do
        [ ! -e "$partial/$file" ] || continue
        curl --fail --location --silent --show-error --continue-at - ${HF_TOKEN:+--header "Authorization: Bearer $HF_TOKEN"} \
            --output "$partial/$file.part" "$hub/$1/resolve/main/$file" || {
            echo "get.sh: $1/$file could not be fetched. A gated model needs HF_TOKEN; called again, get.sh goes on." >&2
            return 1
        }
        mv "$partial/$file.part" "$partial/$file"
    done
    mv "$partial" "$2"
}

[ $# -gt 0 ] || set -- "${names[@]}"
for name in "$@"; do
    id=${ids[$name]:-}
    if [ -z "$id" ]; then
        echo "get.sh: unknown model $name; known are ${names[*]}" >&2
        exit 2
    fi
done
mkdir -p "$models"
for name in "$@"; do
    dir=$models/$name
    if [ -e "$dir/config.json" ]; then
        echo "$dir: is there"
    elif [ -e "$models/$name.gguf" ]; then
        "${SPARROW:-sparrow}" convert "$models/$name.gguf" -o "$dir"
    else
        download "${ids[$name]}" "$dir"
        echo "$dir: ${ids[$name]}"
    fi
done
