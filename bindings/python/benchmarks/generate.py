"""Tokens per second of `Sparrow.generate` beside those of the command, in turns.

python generate.py --sparrow target/release/sparrow DIR
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from statistics import median

from sparrow_llm import Sparrow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", metavar="DIR")
parser.add_argument("--sparrow", default="sparrow", help="the command, built with --release")
parser.add_argument("--rounds", type=int, default=9)
parser.add_argument("--prompt", default="Once upon a time")
parser.add_argument("--new-tokens", type=int, default=64)
args = parser.parse_args()

model = Sparrow.from_pretrained(args.model, selector="dense")
command = [args.sparrow, "generate", "-m", args.model, "-s", "dense", "-t", model.threads, "-n", args.new_tokens]
command += ["-p", args.prompt]


def package() -> float:
    """Tokens per second after the first, by the clock of the caller."""
    result = model.generate(args.prompt, max_new_tokens=args.new_tokens)
    began = time.perf_counter()
    result = model.generate(args.prompt, max_new_tokens=args.new_tokens)
    decoding = time.perf_counter() - began - (result.timings.time_to_first_token or 0.0)
    return (len(result.token_ids) - 1) / decoding


def binary() -> float:
    """The same, as the command says."""
    said = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stderr
    found = re.search(r"\(([0-9.]+) tok/s after the first\)", said)
    assert found, said
    return float(found[1])


package()
rounds = [(package(), binary()) for _ in range(args.rounds)]
ours, theirs = (median(pair[side] for pair in rounds) for side in (0, 1))
ratio = median(a / b for a, b in rounds)
print(f"package {ours:.2f}, command {theirs:.2f} tokens per second after the first; median of ratios {ratio:.3f}")
