#!/usr/bin/env python3
"""Times transformers (CPU) and Sparrow on one checkpoint, in turns; writes JSON and a Markdown table."""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Transformers:
    """The reference implementation, in bf16, as `generate` runs it: prefill, then one token at a time with a cache."""

    name = "transformers bf16"

    def __init__(self, model, threads):
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def run(self, prompt_tokens, gen_tokens):
        torch = self.torch
        vocab = self.model.config.vocab_size
        ids = torch.arange(prompt_tokens).mul(7919).remainder(vocab)[None]
        with torch.inference_mode():
            start = time.perf_counter()
            out = self.model(ids, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            ttft = time.perf_counter() - start
            start = time.perf_counter()
            for _ in range(gen_tokens - 1):
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            decode = time.perf_counter() - start
        return {"prefill_tokens_per_s": prompt_tokens / ttft, "decode_tokens_per_s": (gen_tokens - 1) / decode}


class Sparrow:
    """One `sparrow bench` of one run; its own bandwidth figure stands beside it."""

    def __init__(self, model, threads, name, arguments):
        self.model, self.threads, self.name, self.arguments = model, threads, name, arguments
        self.machine = None

    def run(self, prompt_tokens, gen_tokens):
        command = [ROOT / "target/release/sparrow", "bench", *self.model, *self.arguments, "--runs", "1"]
        command += ["--threads", self.threads, "--prompt-tokens", prompt_tokens, "--gen-tokens", gen_tokens]
        out = subprocess.run([*map(str, command), "--format", "json"], check=True, capture_output=True).stdout
        report = json.loads(out)
        self.machine = report["machine"]
        row = report["rows"][-1]
        keys = ("prefill_tokens_per_s", "decode_tokens_per_s", "decode_gb_s", "active_fraction", "peak_rss_bytes")
        return {key: row[key] for key in keys} | {"read_gb_s": report["machine"]["read_gb_s"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory written by `sparrow synth`")
    parser.add_argument("--shape", default="llama-3.2-3b", help="the shape it has, for rows with forced active neurons")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--gen-tokens", type=int, default=16)
    args = parser.parse_args()

    mapped, memory = ["--model", args.model], ["--shape", args.shape]
    peer = Transformers(args.model, args.threads)
    engines = [
        peer,
        Sparrow(mapped, args.threads, "sparrow bf16 dense, mapped file", ["--selector", "dense"]),
        Sparrow(memory, args.threads, "sparrow bf16 dense, in memory", ["--selector", "dense"]),
        Sparrow(memory, args.threads, "sparrow bf16, 10 % active", ["--selector", "forced:active=0.1,overlap=0.8"]),
    ]
    peer.run(args.prompt_tokens, 2)  # warm up
    runs = {engine.name: [] for engine in engines}
    for round_ in range(args.rounds):
        for engine in engines:
            runs[engine.name].append(engine.run(args.prompt_tokens, args.gen_tokens))
            print(round_, engine.name, runs[engine.name][-1], flush=True)

    median = {n: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for n, rs in runs.items()}
    base = median[engines[0].name]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": engines[1].machine,
        "peer": peer.version,
        "python": platform.python_version(),
        "shape": args.shape,
        "settings": {k: getattr(args, k) for k in ("threads", "rounds", "prompt_tokens", "gen_tokens")},
        "median": median,
        "runs": runs,
    }
    lines = [
        f"# {args.shape}, bf16, {args.threads} threads, {result['date']}",
        "",
        f"{result['machine']['cpu']} ({result['machine']['isa']}); {peer.version}. Random weights: speed only. "
        f"Prompt {args.prompt_tokens}, generated {args.gen_tokens} tokens, medians of {args.rounds} rounds in turns.",
        "",
        "| engine | prefill tok/s | ÷ transformers | decode tok/s | ÷ transformers | decode GB/s ÷ read GB/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in median.items():
        prefill, decode = m["prefill_tokens_per_s"], m["decode_tokens_per_s"]
        bandwidth = f"{m['decode_gb_s']:.1f} ÷ {m['read_gb_s']:.1f}" if "read_gb_s" in m else ""
        lines.append(
            f"| {name} | {prefill:.1f} | {prefill / base['prefill_tokens_per_s']:.2f} "
            f"| {decode:.2f} | {decode / base['decode_tokens_per_s']:.2f} | {bandwidth} |"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date']}-{args.shape}"
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / f"{stem}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
