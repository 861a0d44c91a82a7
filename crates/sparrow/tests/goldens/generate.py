#!/usr/bin/env python3
"""Write the golden cases: tiny random checkpoints with reference outputs.

Each case is a folder beside this script that holds a checkpoint as
transformers saves it (config.json, model.safetensors or shards with an index)
and golden.safetensors:

  input_ids      int64   [batch, seq]
  logits         float32 [batch, seq, vocab]  stored weights, computed in float32
  logits_native  float32 [batch, seq, vocab]  bf16 checkpoints: computed in bf16
  greedy         int64   [16]                 greedy continuation of the first row

    python generate.py              write the cases
    python generate.py --check      load what is there and compare
    python generate.py --demo PATH  write demo.json for the demo model at PATH
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM)

HERE = Path(__file__).resolve().parent
GREEDY = 16
MARGIN = 0.02  # least lead of the best logit over the next in a greedy continuation

class FatRelu(torch.nn.Module):
    """ProSparse's activation, arXiv 2402.13516."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return torch.where(x > self.threshold, x, torch.zeros_like(x))


# Models whose code is beside their weights: Llama and Mistral with other MLPs.
class SparseLlamaConfig(LlamaConfig):
    model_type = "sparsellama"


class SparseLlamaForCausalLM(LlamaForCausalLM):
    config_class = SparseLlamaConfig

    def __init__(self, config):
        act, config.hidden_act = config.hidden_act, "relu"
        super().__init__(config)
        config.hidden_act = act
        for layer in self.model.layers:
            layer.mlp.act_fn = FatRelu(config.hidden_act_param)


class BambooConfig(MistralConfig):
    model_type = "bamboo"


class BambooForCausalLM(MistralForCausalLM):
    """dReLU, arXiv 2406.05955; checkpoints have predictors, which the model itself does not use."""

    config_class = BambooConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            mlp = layer.mlp
            mlp.predictor = torch.nn.ModuleDict({
                "fc1": torch.nn.Linear(config.hidden_size, 8, bias=False),
                "fc2": torch.nn.Linear(8, config.intermediate_size, bias=False)})
            mlp.forward = lambda x, mlp=mlp: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.act_fn(mlp.up_proj(x)))


for config, model in [(SparseLlamaConfig, SparseLlamaForCausalLM), (BambooConfig, BambooForCausalLM)]:
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, model)

# Settings of the model's config class, and for the script itself: "arch" (its
# model_type), "dtype", "std" (of the weights), "seq", "shard" (largest shard)
# and "old" (rewrite config.json in the older spelling, these keys left out).
OWN = ("arch", "dtype", "std", "seq", "shard", "old")
BASE = dict(arch="llama", vocab_size=96, hidden_size=48, intermediate_size=112, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, hidden_act="silu",
            max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, dtype="float32", std=0.2, seq=24)


# The other architectures: smaller, as there are many.
SMALL = dict(vocab_size=64, hidden_size=28, num_hidden_layers=3, num_attention_heads=4,
             max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
             pad_token_id=0, dtype="float16", std=0.25, seq=24)


def small(arch, **settings):
    if arch == "opt":
        return {**SMALL, "arch": arch, "ffn_dim": 52, **settings}
    return {**SMALL, "arch": arch, "intermediate_size": 44, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, **settings}


def long_factors(n):
    """Short and long factors as published ones grow: from 1 to 2 and to 20."""
    return dict(short_factor=[round(1 + i / n, 3) for i in range(n)],
                long_factor=[round(1 + 19 * (i / n) ** 2, 3) for i in range(n)])


def rope(kind="default", theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)

CASES = {
    # Grouped queries, SiLU: the plain Llama layout.
    "plain": dict(),
    # No dimension is a multiple of 16; ReLU gate; tied; bf16.
    "odd-sizes": dict(vocab_size=101, hidden_size=72, intermediate_size=172,
                      num_attention_heads=6, num_key_value_heads=3, head_dim=12, hidden_act="relu",
                      tie_word_embeddings=True, rms_norm_eps=1e-6, dtype="bfloat16", seq=33,
                      rope_parameters=rope(theta=500.0)),
    # head_dim other than hidden / heads, every head its own keys, exact GELU.
    "wide-heads": dict(vocab_size=80, hidden_size=40, intermediate_size=90, num_attention_heads=4,
                       num_key_value_heads=4, head_dim=18, hidden_act="gelu",
                       rope_parameters=rope(theta=1000000.0)),
    # One key-value head, tanh GELU, biases in attention, loose epsilon, f16.
    "one-kv-head": dict(vocab_size=64, hidden_size=50, intermediate_size=131,
                        num_attention_heads=5, num_key_value_heads=1, head_dim=10,
                        hidden_act="gelu_pytorch_tanh", attention_bias=True, rms_norm_eps=1e-2,
                        dtype="float16", num_hidden_layers=3),
    # Biases everywhere, squared ReLU, tied.
    "biases": dict(hidden_size=44, head_dim=12, intermediate_size=100, hidden_act="relu2",
                   attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=4, std=0.15),
    # Llama 3 frequency scaling with ReLU gates, bf16.
    "rope-llama3": dict(vocab_size=128, hidden_size=64, intermediate_size=160, head_dim=16,
                        hidden_act="relu", tie_word_embeddings=True, dtype="bfloat16", seq=40,
                        max_position_embeddings=256,
                        rope_parameters=rope("llama3", 500000.0, **LLAMA3)),
    # Linear scaling, f16, in several shards.
    "rope-linear-sharded": dict(hidden_size=56, intermediate_size=124, head_dim=14, dtype="float16",
                                num_hidden_layers=3, shard="60KB",
                                rope_parameters=rope("linear", factor=2.5)),
    # Dynamic scaling; the prompt is longer than max_position_embeddings.
    "rope-dynamic": dict(max_position_embeddings=16, seq=28, hidden_act="relu",
                         rope_parameters=rope("dynamic", factor=2.0)),
    # The same, but the limit is crossed during generation.
    "rope-dynamic-crossing": dict(max_position_embeddings=26, seq=20, hidden_size=40,
                                  intermediate_size=96, head_dim=10, num_key_value_heads=1,
                                  rope_parameters=rope("dynamic", 5000.0, factor=4.0)),
    # Older config.json: rope_theta, rope_scaling and torch_dtype at the top.
    "old-config-llama3": dict(hidden_size=64, intermediate_size=140, dtype="bfloat16", seq=36,
                              hidden_act="relu", rope_parameters=rope("llama3", 20000.0, **LLAMA3),
                              old=["head_dim"]),
    # Older still: "type" for "rope_type".
    "old-config-linear": dict(hidden_size=40, intermediate_size=88, dtype="float16",
                              tie_word_embeddings=True,
                              rope_parameters=rope("linear", factor=4.0),
                              old=["head_dim", "rope_type"]),
    # The oldest: defaults stand in for every key that came later.
    "old-config-minimal": dict(hidden_size=40, intermediate_size=76, num_key_value_heads=4,
                               rms_norm_eps=1e-6,
                               old=["head_dim", "num_key_value_heads", "rope_theta", "rope_scaling",
                                    "attention_bias", "attention_dropout", "mlp_bias",
                                    "tie_word_embeddings", "pretraining_tp", "torch_dtype"]),
    # A window in every layer, shorter than the sequence.
    "mistral-window": small("mistral", head_dim=10, sliding_window=7),
    # Older config.json, no window, one key head, tied.
    "mistral-old": small("mistral", hidden_size=40, num_key_value_heads=1, sliding_window=None,
                         num_hidden_layers=2, tie_word_embeddings=True, dtype="bfloat16",
                         rope_parameters=rope(theta=1000000.0), old=["head_dim"]),
    # Biases on queries, keys and values alone; windows from layer 1 on; tied.
    "qwen2-windows": small("qwen2", hidden_size=40, use_sliding_window=True, sliding_window=6,
                           max_window_layers=1, tie_word_embeddings=True),
    # YaRN, and the windows as older configurations say it: no layer_types.
    "qwen2-yarn-old": small("qwen2", hidden_size=40, use_sliding_window=True, sliding_window=9,
                            max_window_layers=2, dtype="bfloat16", max_position_embeddings=32,
                            std=0.16,
                            rope_parameters=rope("yarn", 50.0, factor=4.0, beta_fast=1.5,
                                                 beta_slow=0.2,
                                                 original_max_position_embeddings=16),
                            old=["layer_types"]),
    # Norms of each head, wider heads, windows where layer_types says.
    "qwen3-windows": small("qwen3", head_dim=14, use_sliding_window=True, sliding_window=5,
                           layer_types=["sliding_attention", "full_attention",
                                        "sliding_attention"]),
    # Biases, tied; a window that is switched off.
    "qwen3-old": small("qwen3", head_dim=10, attention_bias=True, tie_word_embeddings=True,
                       num_key_value_heads=1, use_sliding_window=False, sliding_window=4,
                       dtype="bfloat16", rope_parameters=rope(theta=1000000.0),
                       old=["layer_types"]),
    # Fused projections, part of a head rotated, a window; the prompt is beyond
    # the original length: long factors from the start.
    "phi3-long": small("phi3", hidden_size=48, sliding_window=11,
                       original_max_position_embeddings=16,
                       rope_parameters=rope("longrope", partial_rotary_factor=0.5,
                                            **long_factors(3))),
    # The original length is crossed during generation: short factors, then long.
    "phi3-crossing-old": small("phi3", hidden_size=40, num_key_value_heads=4, seq=20,
                               num_hidden_layers=2, tie_word_embeddings=True, dtype="bfloat16",
                               std=0.16, original_max_position_embeddings=26, sliding_window=None,
                               rope_parameters=rope("longrope", **long_factors(5)),
                               old=["rope_type"]),
    # Norms with an offset, scaled embeddings, one key head, tied.
    "gemma-wide-heads": small("gemma", head_dim=18, num_key_value_heads=1,
                              tie_word_embeddings=True),
    # "gelu" in older configurations means the tanh form; tied by default.
    "gemma-old": small("gemma", head_dim=10, num_key_value_heads=4, attention_bias=True,
                       tie_word_embeddings=True, dtype="bfloat16", num_hidden_layers=2,
                       old=["tie_word_embeddings", "hidden_act=gelu"]),
    # Both soft caps, norms after blocks too, every other layer with a window.
    "gemma2-caps": small("gemma2", head_dim=12, sliding_window=5, query_pre_attn_scalar=20,
                         attn_logit_softcapping=1.5, final_logit_softcapping=4.0),
    # No caps, biases, tied, no layer_types.
    "gemma2-old": small("gemma2", head_dim=10, sliding_window=9, query_pre_attn_scalar=7,
                        attn_logit_softcapping=None, final_logit_softcapping=None,
                        attention_bias=True, tie_word_embeddings=True, std=0.15,
                        dtype="bfloat16", old=["layer_types"]),
    # Two rotary embeddings, that of full layers scaled; norms of each head.
    "gemma3-windows": small("gemma3_text", head_dim=12, sliding_window=5, num_hidden_layers=4,
                            sliding_window_pattern=3, query_pre_attn_scalar=15,
                            tie_word_embeddings=True,
                            rope_parameters={"full_attention": rope("linear", 50000.0, factor=4.0),
                                             "sliding_attention": rope(theta=100.0)}),
    # The same in the older spelling, which counts layers; capped logits.
    "gemma3-old": small("gemma3_text", head_dim=10, sliding_window=6, sliding_window_pattern=2,
                        query_pre_attn_scalar=10, final_logit_softcapping=9.0, dtype="bfloat16",
                        num_key_value_heads=1, tie_word_embeddings=True, std=0.15,
                        rope_parameters={"full_attention": rope("linear", 1000000.0, factor=8.0),
                                         "sliding_attention": rope(theta=10000.0)},
                        old=["layer_types", "sliding_window_pattern=2"]),
    # Norms after the blocks only, and over all heads of queries and keys together.
    "olmo2-grouped": small("olmo2", hidden_size=40),
    # Biases, one key head, linear scaling.
    "olmo2-old": small("olmo2", hidden_size=32, num_key_value_heads=1, attention_bias=True,
                       dtype="bfloat16", num_hidden_layers=2,
                       rope_parameters=rope("linear", 500000.0, factor=2.0), old=[]),
    # Layer norms, learned positions, biases, ReLU without a gate, tied.
    "opt-relu": small("opt", hidden_size=36, tie_word_embeddings=True, num_hidden_layers=2),
    # No biases but those of the norms, GELU, a head of its own, odd head size.
    "opt-untied": small("opt", hidden_size=35, num_attention_heads=5, enable_bias=False,
                        activation_function="gelu", max_position_embeddings=41, dtype="bfloat16"),
    # ReLU with a threshold, above which values jump: rounding must not cross it too often.
    "prosparse": small("sparsellama", hidden_act="fatrelu", hidden_act_param=0.06, head_dim=10),
    # ReLU of gate and up, a window, predictors that are not part of the model.
    "bamboo": small("bamboo", hidden_act="relu", head_dim=10, sliding_window=9, dtype="bfloat16"),
}


def build(case, seed):
    """A model with random weights of the case's dtype."""
    case = dict(case)
    arch, dtype, std = (case[key] for key in ("arch", "dtype", "std"))
    for key in OWN:
        case.pop(key, None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **case))
    g = torch.Generator().manual_seed(seed)
    center = 0 if arch.startswith("gemma") else 1  # of norms: Gemma's add 1
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        is_scale = "norm" in name and not name.endswith("bias")
        p.data = center + 0.2 * noise if is_scale else std * noise
    model.tie_weights()
    return model.to(getattr(torch, dtype))


def old_style(folder, changes):
    """Rewrite config.json as older versions of transformers wrote it. Changes
    name keys to leave out, or are "key=value"."""
    path = folder / "config.json"
    cfg = json.loads(path.read_text())
    scaling = cfg.pop("rope_parameters")
    if "sliding_attention" in scaling:
        cfg["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
        scaling = scaling["full_attention"]
    cfg["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    scaling.pop("partial_rotary_factor", None)
    if "original_max_position_embeddings" in cfg:
        scaling.pop("original_max_position_embeddings", None)
    key = "type" if "rope_type" in changes else "rope_type"
    cfg["rope_scaling"] = None if kind == "default" else {key: kind, **scaling}
    cfg["torch_dtype"] = cfg.pop("dtype")
    cfg["transformers_version"] = "4.45.0" if key == "rope_type" else "4.31.0"
    for change in changes:
        name, _, value = change.partition("=")
        cfg.pop(name, None)
        if value:
            cfg[name] = int(value) if value.isdigit() else value
    path.write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n")


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def greedy(folder, prompt, count):
    """Greedy continuation with the cache, and the least lead of a chosen id."""
    model = load(folder, torch.float32)
    model.generation_config.eos_token_id = None
    out = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]),
                         do_sample=False, max_new_tokens=count, pad_token_id=0,
                         output_logits=True, return_dict_in_generate=True)
    top = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(prompt):].tolist(), (top[:, 0] - top[:, 1]).min().item()


@torch.no_grad()
def reference(folder, ids, dtype):
    # A new instance for each call: dynamic scaling remembers the longest input.
    return load(folder, dtype)(input_ids=ids, use_cache=False).logits.float()


def write(name, settings):
    case = settings if "arch" in settings else {**BASE, **settings}
    folder = HERE / name
    first = 1000 * (1 + list(CASES).index(name))
    for seed in range(first, first + 100):
        shutil.rmtree(folder, ignore_errors=True)
        model = build(case, seed)
        model.save_pretrained(folder, max_shard_size=case.get("shard", "1GB"))
        (folder / "generation_config.json").unlink(missing_ok=True)
        if "old" in case:
            old_style(folder, case["old"])
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, case["vocab_size"], (2, case["seq"]), generator=g)
        out, lead = greedy(folder, ids[0], GREEDY)
        if lead > MARGIN and len(set(out)) > 4:  # clear choices, no single loop
            break
    else:
        raise SystemExit(f"{name}: no seed gives a clear continuation")
    tensors = {"input_ids": ids, "logits": reference(folder, ids, torch.float32),
               "greedy": torch.tensor(out)}
    if case["dtype"] == "bfloat16":
        tensors["logits_native"] = reference(folder, ids, torch.bfloat16)
    save_file(tensors, folder / "golden.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, {size} bytes, logits std {tensors['logits'].std():.2f}, "
          f"greedy {out}, least lead {lead:.3f}")


def check(name):
    folder = HERE / name
    golden = load_file(folder / "golden.safetensors")
    worst = (reference(folder, golden["input_ids"], torch.float32) - golden["logits"]).abs().max()
    out, _ = greedy(folder, golden["input_ids"][0], GREEDY)
    same = out == golden["greedy"].tolist()
    print(f"{name}: logits differ by {worst:.2e}, greedy {'same' if same else 'DIFFERS'}")
    return worst < 1e-3 and same


@torch.no_grad()
def demo(path, window=256):
    """Reference figures for the demo model, computed in float32."""
    tok, model = AutoTokenizer.from_pretrained(path), load(path, torch.float32)
    prompt = "Once upon a time"
    ids = tok(prompt)["input_ids"]
    top = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(5)
    out, lead = greedy(path, torch.tensor(ids), 48)

    active = torch.zeros(len(model.model.layers), dtype=torch.float64)

    def count(layer):
        def hook(_module, _inputs, gate):
            active[layer] += (gate > 0).double().sum() / gate.shape[-1]
        return hook

    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate_proj.register_forward_hook(count(i))
    text = (Path(path) / "sample.txt").read_text(encoding="utf-8")
    sample = torch.tensor(tok(text, add_special_tokens=False)["input_ids"])
    total, predicted, seen = 0.0, 0, 0
    for part in sample.split(window):
        if len(part) < 2:
            continue  # nothing to predict
        logits = model(input_ids=part[None]).logits[0, :-1]
        total += F.cross_entropy(logits.double(), part[1:], reduction="sum").item()
        predicted += len(part) - 1
        seen += len(part)
    active = (active / seen).tolist()
    figures = {
        "prompt": prompt, "prompt_ids": ids,
        "top5": [[i, round(v, 5)] for i, v in zip(top.indices.tolist(), top.values.tolist())],
        "greedy_ids": out, "greedy_text": tok.decode(out), "greedy_least_lead": round(lead, 5),
        "sample_txt_window": window, "sample_txt_tokens": len(sample),
        "sample_txt_predicted_tokens": predicted,
        "sample_txt_perplexity": round(math.exp(total / predicted), 5),
        "sample_txt_active_per_layer": [round(a, 5) for a in active],
        "sample_txt_active": round(sum(active) / len(active), 5),
    }
    (HERE / "demo.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--demo", metavar="PATH", help="write demo.json for this demo model")
    parser.add_argument("cases", nargs="*", help=f"some of: {', '.join(CASES)} (all without)")
    args = parser.parse_args()
    if args.demo:
        demo(args.demo)
    elif args.check:
        raise SystemExit(0 if all([check(n) for n in args.cases or CASES]) else 1)
    else:
        for name in args.cases or CASES:
            write(name, CASES[name])


if __name__ == "__main__":
    main()
