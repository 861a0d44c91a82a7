"""Trains low-rank predictors on activations of a transformers model, and writes a directory that `sparrow` loads.

python train_predictor.py DIR TEXT OUT

The predictor of a layer says from the MLP's input x which neurons will be active: b·(a·x) + bias, of rank far below the hidden
size (Deja Vu, arXiv 2310.17157). `sparsify` makes it in closed form. This goes on from there, with a loss that asks only whether a
gate is open, and keeps of each layer what recalls more at the same number of active neurons.
"""

import json
import os
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparrow_llm import Sparrow, sparsify

if len(sys.argv) != 4:
    sys.exit(__doc__)
source, text_file, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
WINDOW, STEPS, RATE = 256, 200, 1e-3
torch.manual_seed(0)

record = sparsify(source, out, selector="lowrank", text=text_file, window=WINDOW)
print("closed form:", record["quality"]["active_fraction"], "active, KL", record["quality"]["kl_mean"])

# What goes into every MLP, and what its gates say.
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
inputs: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
gates: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
for i, layer in enumerate(model.model.layers):
    def keep(module, args, output, i=i):
        inputs[i].append(args[0].flatten(0, 1))
        gates[i].append(output.flatten(0, 1))

    layer.mlp.gate_proj.register_forward_hook(keep)
ids = AutoTokenizer.from_pretrained(source)(text_file.read_text(), return_tensors="pt").input_ids[0]
ids = ids[: int(len(ids) * 0.9)]  # the last tenth measures
with torch.inference_mode():
    for window in ids.split(WINDOW):
        model(window[None])

file = out / "sparrow.safetensors"
tensors = load_file(file)
thresholds = record["method"]["lowrank"]["thresholds"]
for i in range(len(inputs)):
    x, gate = torch.cat(inputs[i]).clone(), torch.cat(gates[i])
    active = (gate > record["true_active_above"][i]).float()
    names = [f"sparrow.layers.{i}.predictor.{part}" for part in ("a", "b", "bias")]
    stored = [tensors[name] for name in names]

    def predicted(parts):
        a, b, bias = parts
        return x @ a.T @ b.T + bias

    kept = (predicted([part.float() for part in stored]) > thresholds[i]["fixed"]).float()
    share = kept.mean()

    def recall(scores):
        threshold = scores.flatten().kthvalue(max(1, int((1 - share) * scores.numel()))).values
        return threshold, ((scores > threshold) * active).sum() / active.sum().clamp(min=1)

    parts = [part.float().clone().requires_grad_() for part in stored]
    optimizer = torch.optim.AdamW(parts, lr=RATE, weight_decay=0.0)
    # A neuron that is missed costs more than one that is computed for nothing.
    weight = torch.tensor(4.0)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (256,))
        loss = binary_cross_entropy_with_logits(predicted(parts)[rows], active[rows], pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        (_, before), (threshold, after) = recall(predicted([p.float() for p in stored])), recall(predicted(parts))
    print(f"layer {i}: {share:.1%} kept, recall {before:.4f} -> {after:.4f}")
    if after > before:
        for name, part, old in zip(names, parts, stored):
            tensors[name] = part.detach().to(old.dtype)
        thresholds[i] = {"fixed": float(threshold)}



def write(name: str, content: str | dict[str, torch.Tensor]) -> None:
    """Writes beside and renames: a run that is killed leaves the directory as it was."""
    temporary = out / f"{name}.tmp"
    temporary.write_text(content) if isinstance(content, str) else save_file(content, temporary)
    os.replace(temporary, out / name)


write(file.name, tensors)
record["method"]["lowrank"]["epochs"] = 1
write("sparrow.json", json.dumps(record, indent=2))

# The quality beside the weights is that of what was written.
text = text_file.read_text()
found = Sparrow.from_pretrained(out).perplexity(text[int(len(text) * 0.9) :], window=WINDOW)
record["quality"] = {"text": f"last tenth of {text_file.name}", **vars(found), "selection": [], "overlap": []}
write("sparrow.json", json.dumps(record, indent=2))
print(f"trained: {found.active_fraction:.1%} active, KL {found.kl_mean:.2e}")
