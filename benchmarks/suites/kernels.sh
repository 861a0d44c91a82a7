# kernels: every kernel, element type and tier against the machine's floors, and the thread pool against others; arguments: names
# shellcheck shell=bash disable=SC2154

[ -z "$quick" ] || set -- rms_norm
record kernels.json sparrow bench --kernels "$@" --format json
[ -n "$quick" ] || record pool.txt pool
