#!/usr/bin/env bash
# Makes the records: runs suites one after another and writes benchmarks/records/DATE-CPU/SUITE, each with the machine
# (doctor.json), the commands (commands.txt) and the results. Run it on an otherwise idle machine.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
records=$here/records name='' shape=llama-3.2-3b quick='' binaries='' suites=() arguments=()

usage() {
    cat <<END
usage: benchmarks/run.sh [OPTION]... SUITE... [-- ARGUMENT...]

suites:
$(sed -sn '1s/^# /  /p' "$here"/suites/*.sh)

options:
  --shape NAME      shape of the random weights; one that \`sparrow synth\` knows [default: $shape]
  --name CPU        name of the machine in the folder's name [default: the CPU's]
  --records DIR     where records go [default: benchmarks/records]
  --binaries DIR    measure the binaries of this folder, and build nothing [default: build them]
  --quick           smallest sizes, to try the script: the figures say nothing; the shape is smollm2-135m

ARGUMENTs go to the suite, which must then be the only one. A suite that was recorded today already is added to.
END
}

fail() {
    echo "run.sh: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --shape) shape=${2:?--shape wants a name} && shift ;;
    --name) name=${2:?--name wants a name} && shift ;;
    --records) records=$(realpath -m "${2:?--records wants a folder}") && shift ;;
    --binaries) binaries=$(realpath "${2:?--binaries wants a folder}") && shift ;;
    --quick) export quick=1 shape=smollm2-135m ;;
    --) shift && arguments=("$@") && break ;;
    -*) fail "no option $1; --help lists them" ;;
    *) [ -f "$here/suites/$1.sh" ] || fail "no suite $1; --help lists them" && suites+=("$1") ;;
    esac
    shift
done
[ ${#suites[@]} -gt 0 ] || { usage >&2 && exit 2; }
[ ${#arguments[@]} -eq 0 ] || [ ${#suites[@]} -eq 1 ] || fail "arguments go to one suite, and these are ${#suites[@]}"

cd "$root"
if [ -z "$binaries" ]; then
    cargo build --release
    cargo build --release --workspace --examples
    binaries=$(realpath "${CARGO_TARGET_DIR:-target}/release")
fi
export PATH="$binaries:$binaries/examples:$PATH"
[ -n "$name" ] || name=$(sparrow doctor --format json | sed -n 's/^  "cpu": "\(.*\)",$/\1/p' | tr -cs 'A-Za-z0-9' '-' | sed 's/-*$//')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What suites are written in. They are sourced: $out is the folder to write to, $scratch one for models, $shape, $binaries,
# $quick and $here are as above, and "$@" are the arguments.

note() { # note FILE COMMAND...: the line of commands.txt; an older one of the same file goes
    local file=$1
    shift
    awk -v file="$file: " 'index($0, file) != 1' "$out/commands.txt" >"$out/commands.tmp"
    echo "$file: ${SPARROW_ISA:+SPARROW_ISA=$SPARROW_ISA }$*" | sed "s|$scratch/||g; s|$root/||g" >>"$out/commands.tmp"
    mv "$out/commands.tmp" "$out/commands.txt"
}

record() { # record FILE COMMAND...: the command beside its output
    local file=$1
    shift
    echo "$file: $*" >&2
    "$@" >"$out/$file.tmp"
    mv "$out/$file.tmp" "$out/$file"
    note "$file" "$@"
}

for suite in "${suites[@]}"; do
    final=$records/$(date +%F)-$name/$suite
    out=$final.tmp
    rm -rf "$out" && mkdir -p "$out"
    [ ! -d "$final" ] || cp -r "$final/." "$out"
    echo "commit: $(git describe --always --dirty)" >>"$out/commands.txt" # of the lines below it
    record doctor.json sparrow doctor --format json
    # shellcheck source=/dev/null
    (
        set -- "${arguments[@]}"
        . "$here/suites/$suite.sh"
    )
    [ -d "$out" ] || continue # the suite had nothing to record
    rm -rf "$final" && mv "$out" "$final"
    echo "recorded in $final" >&2
done
