#!/usr/bin/env python3
"""What every way to read less costs in quality and brings in speed: resumable commands, and the page they make.

    quality.py run --text wiki.valid.txt --text other.txt smollm2=DIR,FILE.gguf qwen15=DIR,FILE.gguf
    quality.py time smollm2=DIR,FILE.gguf qwen15=DIR,FILE.gguf
    quality.py report

`run` prepares each model in each way (sparrow sparsify, quantize, prune), evaluates it against the model as stored (sparrow eval) on
the beginning of every text and by questions, and adds a line to results.jsonl for each. What stands there is not measured again, so
a run that ends early goes on when called again; the most telling settings come first, for all models. Calibration reads the second
half of the first text, of which the beginning is evaluated. `time` decodes in the ways that are marked in settings.py, llama.cpp's
own among them, in turns, and adds a line to speed.jsonl for each model: the last one counts. `report` writes README.md, results.md
and the plots from both. Only Python's standard library is needed; for llama.cpp's files a GGUF file of the model, in any type, and a
Python that has it (--llama, made by benchmarks/suites/peers/install.sh).
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import questions
from report import write_report
from settings import SETTINGS

HERE = pathlib.Path(__file__).resolve().parent
# What is kept of the program's report.
FIGURES = [
    "tokens", "perplexity", "dense_perplexity", "kl_mean", "kl_p99", "top1_agreement", "active_fraction",
    "weight_bytes_per_token", "kv_bytes", "bytes_per_token", "dense_bytes_per_token", "answers",
]
# Tokens of a timed prompt, and tokens decoded after it.
PROMPT, GENERATED = 64, 128


class Model:
    """`name=directory`, with `,file.gguf` for llama.cpp, and what is made of it."""

    def __init__(self, args, words):
        self.args = args
        self.name, _, paths = words.partition("=")
        self.directory, _, self.gguf = paths.partition(",")
        self.folder = args.work / self.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def can(self, setting):
        return not setting["file"] or (self.gguf and self.args.llama)

    def place(self, steps):
        """Where the model is, or is put, after these steps."""
        if not steps:
            return pathlib.Path(self.directory)
        words = json.dumps([self.args.calibration_tokens, steps])
        return self.folder / f"made-{hashlib.sha256(words.encode()).hexdigest()[:12]}"

    def prepared(self, setting):
        """What a setting runs: the model, what its steps made of it, or llama.cpp's file. Made where it is not there yet."""
        if setting["file"]:
            return self.file(setting["file"])
        for number, step in enumerate(setting["prepare"], 1):
            source, out = (self.place(setting["prepare"][:end]) for end in (number - 1, number))
            if not out.exists():
                target = [source] if step[0] == "sparsify" else ["-m", source]
                calibration = ["--text", self.args.work / "calibration.txt", "--max-tokens", self.args.calibration_tokens]
                sparrow(self.args, step[0], *target, "-o", out, *step[1:], *calibration, "--format", "json")
        return self.place(setting["prepare"])

    def file(self, name):
        target = self.folder / f"{name}.gguf"
        if not target.exists():
            made = target.with_suffix(".part")
            source = self.gguf if name == "BF16" else self.file("BF16")
            command = [self.args.llama, HERE / "llama.py", "quantize", source, name, made]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            made.rename(target)
        return target

    def keep(self, setting):
        """Removes what was made, or begun, for others than this setting and those that are timed: disks are small."""
        needed = [setting] + [other for other in SETTINGS if other["timed"]]
        kept = {self.place(other["prepare"][:end]) for other in needed for end in range(len(other["prepare"]) + 1)}
        for made in self.folder.glob("made-*"):
            if made.with_suffix("") not in kept:
                shutil.rmtree(made)


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def second_half(text):
    """The second half of a text, from the beginning of a line on."""
    content = pathlib.Path(text).read_text(encoding="utf-8")
    return content[content.index("\n", len(content) // 2) + 1 :]


def add(path, line):
    with open(path, "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def sparrow(args, *command):
    words = [args.sparrow, "--quiet", *map(str, command)]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True).stdout


def processor(args):
    return json.loads(sparrow(args, "doctor", "--format", "json"))["cpu"]


def chosen(args, models):
    """Models with their settings, the most telling settings of all models first."""
    for rank in sorted({setting["rank"] for setting in SETTINGS}):
        for model in models:
            for setting in SETTINGS:
                if setting["rank"] == rank and model.can(setting) and (not args.only or setting["name"] in args.only):
                    yield model, setting


def measure(args, results):
    done = [line["key"] for line in results]
    texts = {path: sha256(path) for path in args.text}
    cpu = processor(args)
    questions.write(args.work / "questions.jsonl")
    for model, setting in chosen(args, [Model(args, words) for words in args.models]):
        key = [model.name, setting["name"], args.tokens, args.window, args.calibration_tokens]
        missing = [text for text, digest in texts.items() if [*key, digest] not in done]
        if not missing:
            continue
        model.keep(setting)
        try:
            for text in missing:
                figures = evaluate(args, setting, model, text)
                line = {
                    "key": [*key, texts[text]], "model": model.name, "setting": setting["name"], "family": setting["family"],
                    "commands": [*setting["prepare"], ["eval", *setting["eval"]]],
                    "text": pathlib.Path(text).name, "date": str(datetime.date.today()), "cpu": cpu,
                } | {figure: figures[figure] for figure in FIGURES}
                add(args.results, line)
                change = 100 * (line["perplexity"] / line["dense_perplexity"] - 1)
                print(f"{model.name}, {setting['name']}, {line['text']}: {change:+.2f} %, KL {line['kl_mean']:.1e}", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"{model.name}, {setting['name']}: failed: {error}", file=sys.stderr)


def evaluate(args, setting, model, text):
    ready = model.prepared(setting)
    reference = ["--reference", model.directory] if ready != pathlib.Path(model.directory) else []
    sizes = ["--window", args.window, "--max-tokens", args.tokens]
    # The cache that generation has by default.
    cache = [] if "--kv-dtype" in setting["eval"] else ["--kv-dtype", "bf16"]
    answers = ["--answers", args.work / "questions.jsonl"] if text == args.text[0] else []
    options = [*reference, "--text", text, *sizes, *cache, *answers, *setting["eval"]]
    return json.loads(sparrow(args, "eval", "-m", ready, *options, "--format", "json"))


def decoded(args, model, setting, own):
    """Tokens per second, of llama.cpp with its `own` file or of Sparrow."""
    ready = model.prepared(setting)
    if own:
        command = [args.llama, HERE / "llama.py", "time", ready, str(os.cpu_count()), str(PROMPT), str(GENERATED)]
        figures = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
        return json.loads(figures)["decode_tokens_per_s"]
    sizes = ["--prompt-tokens", PROMPT, "--gen-tokens", GENERATED, "--runs", 1, "--quality-tokens", 0]
    selector = [] if "--selector" in setting["eval"] else ["--selector", setting["prepare"][-1][2]]
    (row,) = json.loads(sparrow(args, "bench", "-m", ready, *setting["eval"], *selector, *sizes, "--format", "json"))["rows"]
    return row["decode_tokens_per_s"]


def time(args):
    for model in [Model(args, words) for words in args.models]:
        timed = [setting for _, setting in chosen(args, [model]) if setting["timed"]]
        rows = [(setting, own) for setting in timed for own in ([True, False] if setting["file"] else [False])]
        speeds = {}
        for turn in range(args.rounds):
            for setting, own in rows:
                name = setting["name"] if own or not setting["file"] else f"{setting['file']} file"
                speeds.setdefault(name, []).append(decoded(args, model, setting, own))
                print(f"{model.name}, round {turn + 1}, {name}: {speeds[name][-1]:.1f} tok/s", flush=True)
        medians = {name: round(statistics.median(values), 2) for name, values in speeds.items()}
        add(args.speeds, {
            "model": model.name, "date": str(datetime.date.today()), "cpu": processor(args), "rounds": args.rounds,
            "prompt_tokens": PROMPT, "generated_tokens": GENERATED, "decode_tokens_per_s": medians,
        })


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "time", "report"])
    parser.add_argument("models", nargs="*", metavar="NAME=DIR[,FILE.gguf]", help="bf16 model directories, smallest first")
    parser.add_argument("--text", action="append", default=[], help="UTF-8 text to evaluate on; the first one's second half calibrates what is not made yet")
    parser.add_argument("--only", action="append", default=[], metavar="SETTING", help="measure only this setting (repeatable)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each text [default: %(default)s]")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window [default: %(default)s]")
    parser.add_argument("--calibration-tokens", type=int, default=16384, help="tokens that calibrate [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row is timed [default: %(default)s]")
    parser.add_argument("--sparrow", default=os.environ.get("SPARROW", "sparrow"), help="the program [default: $SPARROW, or sparrow]")
    parser.add_argument("--llama", help="Python that has llama.cpp [default: its quantisations are left out]")
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results.jsonl")
    parser.add_argument("--speeds", type=pathlib.Path, default=HERE / "speed.jsonl")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/quality"), help="folder for what is made of models [default: %(default)s]")
    args = parser.parse_intermixed_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.action != "report" and (not args.models or (args.action == "run" and not args.text)):
        parser.error("run needs --text FILE and NAME=DIR, time needs NAME=DIR")
    if args.text:
        (args.work / "calibration.txt").write_text(second_half(args.text[0]), encoding="utf-8")
    if args.action == "report":
        write_report(lines(args.results), lines(args.speeds), HERE)
    elif args.action == "time":
        time(args)
    else:
        measure(args, lines(args.results))


if __name__ == "__main__":
    main()
