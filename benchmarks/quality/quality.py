#!/usr/bin/env python3
"""What every way to read less costs in quality: one resumable command, and the page it makes.

    quality.py run --text wiki.valid.txt --text other.txt smollm2=DIR qwen15=DIR
    quality.py report

`run` prepares each model in each way (sparrow sparsify, prune), evaluates it against the model as stored (sparrow eval) on the
beginning of every text, and adds a line to results.jsonl for each. What stands there is not measured again, so a run that ends
early goes on when called again; the most telling settings come first, for all models. Calibration reads the second half of the
first text, of which the beginning is evaluated. `report` writes README.md and the plots from results.jsonl. Only Python's
standard library is needed.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from report import write_report
from settings import SETTINGS

HERE = pathlib.Path(__file__).resolve().parent
# What is kept of the program's report.
FIGURES = [
    "tokens", "perplexity", "dense_perplexity", "kl_mean", "kl_p99", "top1_agreement", "active_fraction",
    "weight_bytes_per_token", "kv_bytes", "bytes_per_token", "dense_bytes_per_token",
]


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def second_half(text, folder):
    """A file with the second half of a text, from the beginning of a line on."""
    content = pathlib.Path(text).read_text(encoding="utf-8")
    half = content[content.index("\n", len(content) // 2) + 1 :]
    path = pathlib.Path(folder) / f"second-half-of-{pathlib.Path(text).name}"
    path.write_text(half, encoding="utf-8")
    return path


def prepared(run, setting, model, calibration, folder):
    """The directory that a setting evaluates: the model, or what its steps made of it."""
    source = model
    for number, step in enumerate(setting["prepare"]):
        out = folder / f"step-{number}"
        shutil.rmtree(out, ignore_errors=True)
        target = ["-m", source] if step[0] == "prune" else [source]
        run(step[0], *target, "-o", out, *step[1:], "--text", calibration)
        source = out
    return source


def measure(args, results):
    done = [line["key"] for line in results]
    texts = {path: sha256(path) for path in args.text}
    cpu = json.loads(sparrow(args, "doctor", "--format", "json"))["cpu"]
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder, open(args.results, "a", encoding="utf-8") as out:
        folder = pathlib.Path(folder)
        calibration = second_half(args.text[0], folder)

        def run(*command):
            sparrow(args, *command, "--max-tokens", args.calibration_tokens, "--format", "json")

        models = [model.partition("=")[::2] for model in args.models]
        # All models have a rank of settings before any has the next.
        for rank in sorted({setting["rank"] for setting in SETTINGS}):
            for name, directory in models:
                ready = {}
                for setting in [setting for setting in SETTINGS if setting["rank"] == rank]:
                    for text, digest in texts.items():
                        key = [name, setting["name"], digest, args.tokens, args.window, args.calibration_tokens]
                        if key in done:
                            continue
                        steps = json.dumps(setting["prepare"])
                        try:
                            if steps not in ready:
                                ready = {steps: prepared(run, setting, directory, calibration, folder)}
                            figures = evaluate(args, setting, ready[steps], directory, text)
                        except subprocess.CalledProcessError as error:
                            print(f"{name}, {setting['name']}: failed: {error}", file=sys.stderr)
                            break
                        line = {
                            "key": key, "model": name, "setting": setting["name"], "family": setting["family"],
                            "commands": [*setting["prepare"], ["eval", *setting["eval"]]],
                            "text": pathlib.Path(text).name, "text_sha256": digest, "window": args.window,
                            "calibration": calibration.name, "date": str(datetime.date.today()), "cpu": cpu,
                        } | {figure: figures[figure] for figure in FIGURES}
                        out.write(json.dumps(line) + "\n")
                        out.flush()
                        change = 100 * (line["perplexity"] / line["dense_perplexity"] - 1)
                        print(f"{name}, {setting['name']}, {line['text']}: {change:+.2f} %, KL {line['kl_mean']:.1e}", flush=True)


def evaluate(args, setting, directory, model, text):
    reference = ["--reference", model] if setting["prepare"] else []
    sizes = ["--window", args.window, "--max-tokens", args.tokens]
    # The cache that generation has by default.
    cache = [] if "--kv-dtype" in setting["eval"] else ["--kv-dtype", "bf16"]
    return json.loads(sparrow(args, "eval", "-m", directory, *reference, "--text", text, *sizes, *cache, *setting["eval"], "--format", "json"))


def sparrow(args, *command):
    words = [args.sparrow, "--quiet", *map(str, command)]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("models", nargs="*", metavar="NAME=DIR", help="bf16 model directories, smallest first")
    parser.add_argument("--text", action="append", default=[], help="UTF-8 text to evaluate on; the first one's second half calibrates")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each text [default: %(default)s]")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window [default: %(default)s]")
    parser.add_argument("--calibration-tokens", type=int, default=16384, help="tokens that calibrate [default: %(default)s]")
    parser.add_argument("--sparrow", default=os.environ.get("SPARROW", "sparrow"), help="the program [default: $SPARROW, or sparrow]")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results.jsonl")
    parser.add_argument("--scratch", help="folder for prepared models, one at a time")
    args = parser.parse_intermixed_args()
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    results = [json.loads(line) for line in lines]
    if args.action == "report":
        write_report(results, HERE)
    elif not args.models or not args.text:
        parser.error("run needs --text FILE and NAME=DIR")
    else:
        measure(args, results)


if __name__ == "__main__":
    main()
