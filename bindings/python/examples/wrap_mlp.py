"""Wraps the linear layers of every MLP of a model of TinyLlama's shape, with random weights, and prints what it became.

python wrap_mlp.py
"""

import pathlib

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sparrow_llm.nn import replace_linear_layers

config = LlamaConfig.from_json_file(pathlib.Path(__file__).with_name("tinyllama.json"))
torch.set_default_dtype(torch.bfloat16)
model = AutoModelForCausalLM.from_config(config).eval()
replaced = replace_linear_layers(model, kind="dense", patterns=("*.mlp.*",))
print(model)
print(f"{replaced.count} layers were replaced")

ids = torch.tensor([[1, 2, 3]])
with torch.inference_mode():
    ours = model(ids).logits.float()
    replaced.undo()
    stock = model(ids).logits.float()
print(f"largest difference of a logit: {(ours - stock).abs().max():.4f}, of {stock.abs().max():.2f}")
