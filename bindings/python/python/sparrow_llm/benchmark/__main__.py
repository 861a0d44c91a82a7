"""`python -m sparrow_llm.benchmark`."""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tempfile
from typing import Any

from .. import Sparrow, _native
from .report import Figures, as_json, as_table
from .rows import DESCRIPTIONS, Job, Run
from .worker import Worker


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sparrow_llm.benchmark",
        description="Generates with stock transformers, with transformers patched by Sparrow, and with Sparrow, each in a process of "
        "its own, in turns, with the same ids; prints medians, and what the selector costs in quality.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="config.json: random weights of this shape, for speed only")
    what.add_argument("--model", metavar="DIR", help="a Hugging Face directory")
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="where to compute")
    default = "stock,sparrow, with --selector stock,patched,sparrow"
    parser.add_argument("--rows", help=f"what to compare: {', '.join(DESCRIPTIONS)} [default: {default}]")
    parser.add_argument("--selector", help="what Sparrow and the patch compute [default: what DIR was sparsified for, else dense]")
    parser.add_argument("--num-runs", type=int, default=10, metavar="N", help="runs of each row [default: 10]")
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="[default: 64]")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="at least 2 [default: 32]")
    parser.add_argument("--threads", type=int, default=_native.default_threads(), metavar="N")
    parser.add_argument("--text", metavar="FILE", help="measure the selector's quality on the beginning of this text")
    parser.add_argument("--max-tokens", type=int, default=2048, metavar="N", help="tokens of it [default: 2048]")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--verbose", action="store_true", help="say on stderr what every run took")
    arguments = parser.parse_args()
    rows = (arguments.rows or ("stock,patched,sparrow" if arguments.selector else "stock,sparrow")).split(",")
    if unknown := [row for row in rows if row not in DESCRIPTIONS]:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(DESCRIPTIONS)}")
    if "patched" in rows and not arguments.selector:
        parser.error("--rows patched: needs --selector, such as gate:quantile=0.5")
    if arguments.new_tokens < 2 or arguments.num_runs < 1 or arguments.prompt_tokens < 1:
        parser.error("--new-tokens must be at least 2, --num-runs and --prompt-tokens at least 1")
    if arguments.text and arguments.config:
        parser.error("--text: random weights have no quality: pass --model DIR")
    arguments.rows = rows
    return arguments


def random_model(config_file: str, directory: str) -> None:
    """Writes a model with random weights in bf16, of the shape that a `config.json` describes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = pathlib.Path(directory)
    (folder / "config.json").write_bytes(pathlib.Path(config_file).read_bytes())
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def measure(arguments: argparse.Namespace, model: str, workers: list[Worker]) -> dict[str, list[Run]]:
    """Runs of every row, taking turns; the first of each only warms up."""
    vocab = json.loads((pathlib.Path(model) / "config.json").read_text())["vocab_size"]
    generator = random.Random(0)
    runs: dict[str, list[Run]] = {worker.row: [] for worker in workers}
    for number in range(arguments.num_runs + 1):
        ids = [generator.randrange(vocab) for _ in range(arguments.prompt_tokens)]
        for worker in workers:
            run = worker.run(ids)
            if number:
                runs[worker.row].append(run)
            if arguments.verbose:
                speed = (arguments.new_tokens - 1) / run.rest
                what = f"run {number}" if number else "warm-up"
                print(f"{what} {worker.row}: TTFT {run.first * 1e3:.1f} ms, {speed:.2f} tok/s", file=sys.stderr)
    return runs


def quality(arguments: argparse.Namespace, model: str) -> dict[str, Any] | None:
    """What the selector costs, where there is a text."""
    if not arguments.text:
        return None
    sparse = Sparrow.from_pretrained(model, selector=arguments.selector, threads=arguments.threads)
    text = pathlib.Path(arguments.text).read_text(encoding="utf-8")
    found = sparse.perplexity(text, max_tokens=arguments.max_tokens)
    return vars(found) | {"selector": sparse.selector, "text": arguments.text}


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="sparrow-benchmark-") as folder:
        model = arguments.model
        if arguments.config:
            print("writing random weights", file=sys.stderr)
            random_model(arguments.config, folder)
            model = folder
        workers: list[Worker] = []
        try:
            for row in arguments.rows:
                job = Job(row, model, arguments.selector, arguments.threads, arguments.new_tokens)
                workers.append(Worker(job))
            runs = measure(arguments, model, workers)
            peaks = {worker.row: worker.close() for worker in workers}
        except BaseException:
            for worker in workers:
                worker.kill()
            raise
        lengths = (arguments.prompt_tokens, arguments.new_tokens)
        figures = [Figures.of(row, runs[row], *lengths, peaks[row]) for row in arguments.rows]
        found = quality(arguments, model)
    head = {
        "model": arguments.model or arguments.config,
        "isa": _native.isa(),
        "threads": arguments.threads,
        "selector": arguments.selector,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "runs": arguments.num_runs,
    }
    if arguments.format == "json":
        print(json.dumps(as_json(figures, head, found), indent=2))
    else:
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in head.items() if value is not None))
        print(as_table(figures, found))


if __name__ == "__main__":
    main()
