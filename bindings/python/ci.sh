#!/usr/bin/env bash
# Builds the wheel, installs it in a fresh virtual environment, and runs everything that is tested from Python. What cannot be is
# named. SPARROW_REQUIRE_PYTHON=torch,transformers makes it a failure that these cannot be installed; transformers-4.57, lm_eval
# and ray, which few changes touch and which take gigabytes, are tested only where it names them.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
required=",${SPARROW_REQUIRE_PYTHON:-},"
python=$(command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))'; then
    echo "skipped: the Python package needs Python 3.10 or newer with venv"
    [ "$required" = ,, ]
    exit
fi

# Environments are kept by what is installed in them: torch alone takes a minute.
cache=${SPARROW_PYTHON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sparrow-python}
environment() { # names of files in requirements/
    local key venv files=("${@/%/.txt}")
    files=("${files[@]/#/requirements/}")
    key=$("$python" -V; cat "${files[@]}")
    venv=$cache/$(IFS=-; echo "$*")-$(printf %s "$key" | sha256sum | cut -c1-16)
    if [ ! -e "$venv/complete" ]; then
        rm -rf "$venv"
        "$python" -m venv "$venv" && install "$venv" <(cat "${files[@]}") && touch "$venv/complete" || return 1
    fi >&2
    echo "$venv"
}
# A line of options and names is one call of pip.
install() {
    local line
    while IFS= read -r line; do
        # shellcheck disable=SC2086
        case $line in '' | '#'*) ;; *) "$1/bin/pip" install --quiet --disable-pip-version-check $line || return 1 ;; esac
    done <"$2"
}

if ! tools=$(environment tools); then
    echo "skipped: the Python package needs maturin and pytest from a package index"
    [ "$required" = ,, ]
    exit
fi
wheels=$root/target/wheels
rm -rf "$wheels"
# The profile that the workspace's tests were built with, so that little is compiled twice.
"$tools/bin/maturin" build --quiet --profile dev --out "$wheels" --interpreter "$python"
wheel=$(echo "$wheels"/*.whl)

# The command whose texts and figures the package must give too: that of the workspace's tests, where they were built.
[ ! -x "$root/target/debug/sparrow" ] || export SPARROW_BINARY=$root/target/debug/sparrow

check() { # environment, what must be there, tests
    "$1/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheel"
    (cd tests && SPARROW_REQUIRE_PYTHON=$2 "$1/bin/python" -m pytest -q -p no:cacheprovider "${@:3}")
}
if full=$(environment torch transformers); then
    check "$full" torch,transformers .
    (cd / && "$full/bin/python" -m mypy.stubtest sparrow_llm._native)
    "$full/bin/python" -m mypy --strict python/sparrow_llm
else
    echo "skipped: tests that need torch and transformers, which cannot be installed"
    [ "$required" = ,, ]
    check "$tools" "" .
fi

# Each beside torch: name, what must be there, tests.
while read -r name needs tests <&3; do
    case $required in
        *,"$name",*)
            beside=$(environment torch "$name")
            # shellcheck disable=SC2086
            check "$beside" "$needs" $tests
            ;;
        *) echo "skipped: tests of $name, which SPARROW_REQUIRE_PYTHON does not name" ;;
    esac
done 3<<'END'
transformers-4.57 torch,transformers test_hf_forward.py test_hf_generate.py test_hf_patch.py
lm_eval lm_eval test_lm_eval.py
ray ray test_ray.py
END
