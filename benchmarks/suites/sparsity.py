#!/usr/bin/env python3
"""Quality and speed of every selector at several active fractions: selectors.json and selectors.md.

The suite `sparsity` of benchmarks/run.sh. Each NAME=DIR:TEXT is a model directory and the text to calibrate on; quality is measured on the text's last tenth, which
calibration does not see, and speed by `sparrow bench`, dense and sparse taking turns. --shape adds speed at a model's shape
with random weights. Only Python's standard library is needed.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import tempfile

SELECTORS = ["gate", "lowrank", "lowrank-trained", "lowrank-look-ahead", "sign", "input", "skip"]
ACTIVE = [1.0, 0.75, 0.6, 0.5, 0.4, 0.25, 0.1]
SHAPE_ACTIVE = [0.75, 0.5, 0.25, 0.1]
OPTIONS = {"lowrank-trained": ["--epochs", "3"], "lowrank-look-ahead": ["--look-ahead"]}


def sparrow(program, *args):
    run = subprocess.run([program, *map(str, args), "--format", "json"], stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout)


def measure(program, name, model, text, tokens, fractions):
    rows = []
    for selector in SELECTORS:
        for active in fractions:
            with tempfile.TemporaryDirectory() as scratch:
                out = pathlib.Path(scratch) / "sparse"
                options = ["--target-active", active, "--max-tokens", tokens, *OPTIONS.get(selector, [])]
                method = selector.split("-")[0]
                made = sparrow(program, "sparsify", model, "-o", out, "--selector", method, "--text", text, *options)
                speed = sparrow(program, "bench", "-m", out, "--prompt-tokens", 32, "--gen-tokens", 128, "--runs", 5)
            quality = made["quality"]
            dense, sparse = (row["decode_tokens_per_s"] for row in speed["rows"][:2])
            row = {
                "model": name,
                "selector": selector,
                "asked": active,
                "active": quality["active_fraction"],
                "perplexity": quality["perplexity"],
                "dense_perplexity": quality["dense_perplexity"],
                "kl_mean": quality["kl_mean"],
                "top1_agreement": quality["top1_agreement"],
                "decode_ratio": sparse / dense,
                "dense_tokens_per_s": dense,
            }
            for part in ["recall", "precision", "true_active_fraction"]:
                values = [layer[part] for layer in quality["selection"]]
                row[part] = sum(values) / len(values) if values else None
            row["overlap"] = sum(quality["overlap"]) / len(quality["overlap"]) if quality["overlap"] else None
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def measure_shape(program, shape):
    rows = []
    for active in SHAPE_ACTIVE:
        rules = [f"{name}:quantile={round(1 - active, 2)}" for name in ["gate", "lowrank", "sign", "input"]]
        for selector in [f"forced:active={active},overlap=0.8", *rules]:
            # In pairs, which take turns run by run: what the memory can do changes from minute to minute.
            pair = ["--selector", "dense", "--selector", selector]
            report = sparrow(program, "bench", "--shape", shape, "--gen-tokens", 16, "--prompt-tokens", 8, "--runs", 3, *pair)
            dense, row = report["rows"]
            keep = ["selector", "active_fraction", "decode_tokens_per_s", "weight_bytes_per_token"]
            row = {key: row[key] for key in keep}
            row["decode_ratio"] = row["decode_tokens_per_s"] / dense["decode_tokens_per_s"]
            row["bound"] = dense["weight_bytes_per_token"] / row["weight_bytes_per_token"]
            row["interleaved"] = report["settings"]["interleaved"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def percent(value, digits=1):
    return "" if value is None else f"{100 * value:.{digits}f} %"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def markdown(report):
    machine = report["machine"]
    text = f"{report['date']}, {machine['cpu']}, {machine['isa']}, {machine['threads']} threads.\n"
    for name in dict.fromkeys(row["model"] for row in report["models"]):
        rows = [row for row in report["models"] if row["model"] == name]
        text += f"\n## {name}\n\nDense perplexity {rows[0]['dense_perplexity']:.4f}"
        text += f" on the last tenth of {report['texts'][name]}.\n\n"
        header = ["selector", "asked", "active", "perplexity", "KL", "same top token", "recall", "precision", "decode ÷ dense"]
        text += table(header, [
            [
                row["selector"],
                percent(row["asked"], 0),
                percent(row["active"]),
                f"{100 * (row['perplexity'] / row['dense_perplexity'] - 1):+.2f} %",
                f"{row['kl_mean']:.1e}",
                percent(row["top1_agreement"]),
                percent(row["recall"]),
                percent(row["precision"]),
                f"{row['decode_ratio']:.2f}",
            ]
            for row in rows
        ])
    if report["shape"]:
        text += f"\n## {report['shape']['name']}, bf16, random weights: speed only\n\n"
        header = ["selector", "active", "tok/s", "÷ dense, in turns", "bound by bytes", "÷ bound"]
        text += table(header, [
            [
                row["selector"],
                percent(row["active_fraction"]),
                f"{row['decode_tokens_per_s']:.2f}",
                f"{row['decode_ratio']:.2f}",
                f"{row['bound']:.2f}",
                f"{row['decode_ratio'] / row['bound']:.2f}",
            ]
            for row in report["shape"]["rows"]
        ])
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparrow", required=True, help="the program to measure")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the results")
    parser.add_argument("--shape", help="also measure speed at this shape")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of each text")
    parser.add_argument("--active", type=float, nargs="+", default=ACTIVE, metavar="FRACTION", help="what to ask for")
    parser.add_argument("models", nargs="*", metavar="NAME=DIR:TEXT")
    args = parser.parse_args()
    doctor = sparrow(args.sparrow, "doctor")
    machine = {key: doctor[key] for key in ["cpu", "isa", "threads", "read_gb_s"] if key in doctor}
    report = {"date": str(datetime.date.today()), "machine": machine, "texts": {}, "models": [], "shape": None}
    result = args.out / "selectors.json"
    if result.exists():
        # What was measured earlier today and is not measured now stays.
        report = json.loads(result.read_text())
    for model in args.models:
        name, _, rest = model.partition("=")
        directory, _, text = rest.rpartition(":")
        report["texts"][name] = pathlib.Path(text).name
        report["models"] = [row for row in report["models"] if row["model"] != name]
        report["models"] += measure(args.sparrow, name, directory, text, args.tokens, args.active)
    if args.shape:
        report["shape"] = {"name": args.shape, "rows": measure_shape(args.sparrow, args.shape)}
    result.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    result.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
