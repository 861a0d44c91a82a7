# pruning: pruned weights and caches at a shape, compressed against dense: 22 GB of memory, 14 GB of disk; arguments: NAME=DIR:TEXT
# shellcheck shell=bash disable=SC2154
# With arguments it also measures what every method and target costs in quality: DIR is a model, TEXT what it is calibrated on.

quality() { # quality NAME=DIR:TEXT METHOD TARGET...: what pruning costs
    local name=${1%%=*} directory=${1#*=} method=$2
    local text=${directory##*:} file="quality-$name-$method-${*: -1}.json"
    shift 2
    record "${file/:/-}" sparrow prune -m "${directory%:*}" -o "$scratch/pruned" --method "$method" "$@" \
        --text "$text" ${quick:+--max-tokens 2000} --format json
    rm -r "$scratch/pruned"
}
for model in "$@"; do
    for method in magnitude wanda sparsegpt; do
        for sparsity in 0.3 0.5 0.7; do quality "$model" $method --sparsity $sparsity; done
        quality "$model" $method --pattern 2:4
    done
    for method in wanda sparsegpt; do quality "$model" $method --sparsity 0.7 --allocation owl; done
done

rows=(--weights-format dense --weights-format auto --format json)
decode=(--prompt-tokens 16 --gen-tokens 24 --runs 5)
prompt=(--prompt-tokens 512 --gen-tokens 2 --runs 3)
batch=(--batch 16 --prompt-tokens 16 --gen-tokens 12 --runs 3)
context=()
if [ -n "$quick" ]; then
    decode=(--prompt-tokens 4 --gen-tokens 2 --runs 1) prompt=(--prompt-tokens 32 --gen-tokens 2 --runs 1)
    batch=(--batch 2 --prompt-tokens 4 --gen-tokens 2 --runs 1) context=(256 1 "$shape")
fi
record bf16-50.json sparrow bench --shape "$shape" --zeros 0.5 "${decode[@]}" "${rows[@]}"
record bf16-70.json sparrow bench --shape "$shape" --zeros 0.7 "${decode[@]}" "${rows[@]}"
record int8-50.json sparrow bench --shape "$shape" --dtype int8 --zeros 0.5 "${decode[@]}" "${rows[@]}"
record int4-50.json sparrow bench --shape "$shape" --dtype int4 --zeros 0.5 "${decode[@]}" "${rows[@]}"
record prompt-512.json sparrow bench --shape "$shape" --zeros 0.5 "${prompt[@]}" "${rows[@]}"
record prompt-512-int8.json sparrow bench --shape "$shape" --dtype int8 --zeros 0.5 "${prompt[@]}" "${rows[@]}"
record batch-16.json sparrow bench --shape "$shape" --zeros 0.5 "${batch[@]}" "${rows[@]}"
if [ -z "$quick" ]; then
    record kernels.txt bitmap
    record attention.txt sparse_attention
    [ "$shape" = llama-3.2-3b ] || context=(16384 4 "$shape")
    record kv-decode.txt kv_decode "${context[@]}"
fi

measured() { # measured COMMAND...: seconds, and peak memory, of which the original's mapped pages are a part
    "$@" >/dev/null 2>&1 &
    local process=$! start=$EPOCHREALTIME peak=0 now
    while now=$(sed -n 's/^VmHWM:\s*\([0-9]*\) kB/\1/p' "/proc/$process/status" 2>/dev/null) && [ -n "$now" ]; do
        peak=$now
        sleep 0.2
    done
    wait "$process"
    echo "$(awk "BEGIN { print $EPOCHREALTIME - $start }") s, $((peak / 1000)) MB: $*" | sed "s|$scratch/||g"
}
sizes() { # sizes: of every model
    (cd "$scratch" && du -sb dense compressed compressed-int8)
}
sparrow synth --shape "$shape" --zeros 0.5 -o "$scratch/dense"
{
    measured sparrow pack -m "$scratch/dense" -o "$scratch/compressed"
    measured sparrow pack -m "$scratch/dense" -o "$scratch/compressed-int8" --dtype int8
    sizes
} >"$out/pack.txt"
note pack.txt "sparrow synth --shape $shape --zeros 0.5 -o dense; sparrow pack -m dense -o compressed; the same with --dtype int8"
record inspect.txt sparrow inspect "$scratch/compressed"
rm -rf "$scratch"/{dense,compressed,compressed-int8}
