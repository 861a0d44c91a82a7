"""Replaces every linear layer of a transformers model, puts them back, prunes half of each, and replaces them again.

python replace_linear_layers.py DIR
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparrow_llm.nn import replace_linear_layers

torch.manual_seed(0)
if len(sys.argv) != 2:
    sys.exit(__doc__)
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
for kind in ["dense", "int8"]:
    replaced = replace_linear_layers(model, kind=kind)
    print(f"{kind}: {replaced.count} layers, {replaced.bytes / replaced.bytes_before:.0%} of the bytes")
    generate()
    replaced.undo()
assert generate() == before

# Half of every matrix becomes 0, the smallest weights first; only what is left is then stored.
with torch.no_grad():
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not model.lm_head:
            size = layer.weight.abs()
            layer.weight[size < size.float().median()] = 0
replaced = replace_linear_layers(model, kind="sparse")
print(f"sparse: {replaced.count} layers, {replaced.bytes / replaced.bytes_before:.0%} of the bytes")
generate()
