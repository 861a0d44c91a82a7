#!/usr/bin/env python3
"""Times the rows of rows.py in turns; writes one JSON file and one Markdown table."""

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import multiprocessing
import pathlib
import statistics
import subprocess
import sys

import check
import report
from engines import LlamaCpp, Settings, Transformers
from rows import ROWS

HERE = pathlib.Path(__file__).parent


def doctor(settings):
    """The machine as it is now: its speed drifts."""
    return json.loads(subprocess.check_output([settings.binaries / "sparrow", "doctor", "--format", "json"]))


def measure(row, settings):
    machine = {"read_gb_s": doctor(settings)["read_gb_s"]}
    return row.engine(settings, **row.options).measure(settings) | machine


def llama_cpp_features():
    import llama_cpp

    return llama_cpp.llama_print_system_info().decode()


def versions(rows):
    """Of the packages that these rows run, and how llama.cpp was built."""
    engines = {row.engine for row in rows}
    packages = {Transformers: ["transformers", "torch"], LlamaCpp: ["llama-cpp-python"]}
    names = [name for engine, names in packages.items() if engine in engines for name in names]
    found = {"versions": {name: importlib.metadata.version(name) for name in names}}
    if LlamaCpp in engines:
        found["llama_cpp_build"] = (pathlib.Path(sys.prefix) / "llama.cpp-build").read_text().strip()
        found["llama_cpp_features"] = in_new_process(llama_cpp_features)
    return found


def in_new_process(function, *arguments):
    """So that one engine at a time holds memory, and a crash costs one row."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def rounds(rows, settings, count):
    """Figures of every run by row, and why rows failed."""
    runs, failures = {row.name: [] for row in rows}, {}
    for round_ in range(count):
        for row in rows:
            if row.name in failures:
                continue
            try:
                runs[row.name].append(in_new_process(measure, row, settings))
                print(round_, row.name, runs[row.name][-1], flush=True)
            except Exception as error:  # the other rows' figures are worth keeping
                failures[row.name] = f"{type(error).__name__}: {error}"
                print(round_, row.name, "failed:", failures[row.name], flush=True)
    return {name: list_ for name, list_ in runs.items() if name not in failures}, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=pathlib.Path, help="directory with checkpoint/ and the .gguf files")
    parser.add_argument("--shape", required=True, help="the shape they have")
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help="directory of the built sparrow")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill-tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--decode-tokens", type=int, default=16)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows")
    parser.add_argument("--check", action="store_true", help="compare logits with Sparrow's instead of timing")
    args = parser.parse_args()

    rows = [row for row in ROWS if args.rows is None or row.name in args.rows]
    prompts = tuple(args.prefill_tokens)
    settings = Settings(args.shape, args.models, args.binaries, args.threads, prompts, args.decode_tokens)
    if args.check:
        sys.exit(not check.run(rows, settings, in_new_process))

    runs, failures = rounds(rows, settings, args.rounds)
    result = {
        "date": datetime.date.today().isoformat(),
        "shape": args.shape,
        "machine": doctor(settings),
        "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=HERE, text=True).strip(),
        **versions(rows),
        "settings": {key: getattr(args, key) for key in ("threads", "rounds", "prefill_tokens", "decode_tokens")},
        "failures": failures,
        "median": {
            name: {key: statistics.median(run[key] for run in list_) for key in list_[0]} for name, list_ in runs.items()
        },
        "runs": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.shape}.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / f"{args.shape}.md").write_text(report.table(result))
    print(report.table(result))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
