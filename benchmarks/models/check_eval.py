#!/usr/bin/env python3
"""Compares the perplexity of `sparrow eval` with that of transformers in f32 on the same windows.

usage: check_eval.py TEXT TOKENS DIR [FILE.gguf]      (SPARROW: the command)

Windows have 512 tokens and begin with the beginning-of-sequence token where the tokenizer adds one. DIR is read by both; FILE.gguf,
which DIR was made from, by Sparrow. Needs torch and transformers.
"""
import json, math, os, subprocess, sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
text, tokens, directory, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
plain = tokenizer(open(text, encoding="utf-8").read(), add_special_tokens=False)["input_ids"][: int(tokens)]
beginning = tokenizer("a")["input_ids"][: -len(tokenizer("a", add_special_tokens=False)["input_ids"])]
step = WINDOW - len(beginning)
predicted, loss = 0, 0.0
with torch.no_grad():
    for start in range(0, len(plain), step):
        ids = torch.tensor([beginning + plain[start : start + step]])
        if ids.shape[1] > 1:
            log_p = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
            loss -= log_p.gather(1, ids[0, 1:, None]).sum().item()
            predicted += ids.shape[1] - 1
expected = math.exp(loss / predicted)
del model
for source in [directory, *files]:
    command = [os.environ.get("SPARROW", "target/release/sparrow"), "eval", "-q", "-m", source, "--selector", "dense", "--text", text,
        "--window", str(WINDOW), "--max-tokens", tokens, "--format", "json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert found["tokens"] == predicted, (found["tokens"], predicted)
    change = 100 * (found["perplexity"] / expected - 1)
    print(f"{source}: {found['perplexity']:.4f}, transformers {expected:.4f} ({change:+.3f} %), {predicted} tokens", flush=True)
    assert abs(change) < 0.1
