# peers: decoding and prompts against transformers and llama.cpp on the same weights: PyPI, 30 GB of disk; arguments: of compare.py
# shellcheck shell=bash disable=SC2154
# Installs the other engines, makes the models, compares. What is made stays in $PEERS_DIR (default: target/peers) and is used again.

work=${PEERS_DIR:-target/peers}
models=$work/$shape
[ -e "$work/venv/llama.cpp-build" ] || "$here/suites/peers/install.sh" "$work/venv"
mkdir -p "$models"
[ -e "$models/checkpoint" ] || sparrow synth --shape "$shape" --dtype bf16 -o "$models/checkpoint"
"$work/venv/bin/python" "$here/suites/peers/make_gguf.py" "$models/checkpoint" "$models"
[ -z "$quick" ] || set -- --rounds 1 --prefill-tokens 32 --decode-tokens 2 "$@"
"$work/venv/bin/python" "$here/suites/peers/compare.py" "$models" --shape "$shape" --binaries "$binaries" --out "$out" "$@"
case " $* " in *" --check "*) rm -r "$out" && exit ;; esac # a check records nothing
note "$shape.json" suites/peers/compare.py --shape "$shape" "$@"
