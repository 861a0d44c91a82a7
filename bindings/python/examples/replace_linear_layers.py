"""Replaces every linear layer of a transformers model, prunes half of each, and undoes it.

python replace_linear_layers.py DIR
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparrow_llm.nn import replace_linear_layers

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
inputs = tokenizer("Once upon a time", return_tensors="pt")


def generate() -> str:
    began = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    print(f"{24 / (time.perf_counter() - began):8.1f} tokens per second:", tokenizer.decode(ids[0]))
    return str(tokenizer.decode(ids[0]))


before = generate()
for kind in ["dense", "int8", "sparse"]:
    replaced = replace_linear_layers(model, kind=kind)
    print(f"{kind}: {replaced.count} layers")
    generate()
    replaced.undo()
assert generate() == before
