# sparsity: quality and speed of every selector at several active fractions; arguments: NAME=DIR:TEXT [default: speed only]
# shellcheck shell=bash disable=SC2154

options=(--sparrow "$binaries/sparrow" --out "$out" --shape "$shape")
[ -z "$quick" ] || options=(--sparrow "$binaries/sparrow" --out "$out" --tokens 2000 --active 0.5)
python3 "$here/suites/sparsity.py" "$@" "${options[@]}"
note selectors.json suites/sparsity.py "$@" "${options[@]:4}"
if [ -z "$quick" ]; then
    for dtype in bf16 f32 int8 int4; do record "union-$dtype.txt" union $dtype; done
fi
