#!/usr/bin/env python3
"""Write tiny checkpoints in the formats of compressed-tensors, with what they stand for.

Each case is a folder beside this script that holds a checkpoint (config.json,
model.safetensors) as llm-compressor saves it and golden.safetensors:

  input_ids      int64    [batch, seq]
  logits         float32  [batch, seq, vocab]  of the decompressed weights, computed in float32
  dense.NAME     of the scales [out, in]       the weight NAME as the package decompresses it; the small ones

    python generate.py             the quantised cases (compressed-tensors 0.20)
    python generate.py --bitmask   the legacy sparse-bitmask cases (compressed-tensors 0.9)
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent

# Odd sizes leave bits of the last byte or word unused; groups need sizes they divide.
ODD = dict(hidden_size=20, intermediate_size=28, num_attention_heads=2, num_key_value_heads=1, head_dim=6)
GROUPS_32 = dict(hidden_size=64, intermediate_size=96, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
GROUPS_64 = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=1, head_dim=32)
GROUPS_128 = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=8)


def model(sizes, seed, layers=1):
    torch.manual_seed(seed)
    config = LlamaConfig(**sizes, num_hidden_layers=layers, vocab_size=24, max_position_embeddings=64,
                         tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
    config.dtype = torch.bfloat16
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def linears(model, ignore=("lm_head",)):
    ignored = lambda name: any(re.match(i[3:], name) if i.startswith("re:") else i == name for i in ignore)
    return [(name, module) for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not ignored(name)]


@torch.no_grad()
def write(case, model, state, quantization_config, dense):
    """`state` is what the checkpoint holds, `dense` the decompressed weights by name."""
    folder = HERE / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = model.config.to_dict()
    config = {key: value for key, value in config.items() if value is not None and "label" not in key}
    for key in ("transformers_version", "_name_or_path"):
        config.pop(key, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config["quantization_config"] = quantization_config
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})

    model = model.float()
    for name, weight in dense.items():
        model.get_parameter(name).copy_(weight.float())
    ids = torch.randint(3, model.config.vocab_size, (2, 12))
    golden = {"input_ids": ids, "logits": model(ids).logits}
    # The large ones are left to the logits.
    kept = {name: weight for name, weight in dense.items() if weight.numel() <= 4096}
    golden |= {f"dense.{name}": weight for name, weight in kept.items()}
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    sizes = sum(f.stat().st_size for f in folder.iterdir())
    for file in folder.iterdir():
        file.chmod(0o644)
    print(f"{case}: {sizes} bytes")


def int_args(**args):
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(type="int", dynamic=False, **args)


def quantised(case, seed, sizes, format, args, scale_dtype=torch.bfloat16, activations=None,
              ignore=("lm_head",)):
    """Rounds to nearest with the range of each group, row or tensor, and stores it in `format`."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    if activations:
        activations = QuantizationArgs(**activations)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=activations)
    compressor = BaseCompressor.get_value_from_registry(format)
    source = model(sizes, seed)
    state = dict(source.state_dict())
    dense = {}
    for name, module in linears(source, ignore):
        weight = module.weight.detach().to(scale_dtype)
        if args.strategy == "tensor":
            low, high = weight.min().reshape(1), weight.max().reshape(1)
        else:
            grouped = weight.reshape(weight.shape[0], -1, args.group_size or weight.shape[1])
            low, high = grouped.amin(-1), grouped.amax(-1)
        scale, zero = calculate_qparams(low, high, args)
        parts = compressor.compress({"weight": weight, "weight_scale": scale.to(scale_dtype),
                                     "weight_zero_point": zero}, scheme)
        back = compressor.decompress(parts, scheme)["weight"]
        del state[f"{name}.weight"]
        state |= {f"{name}.{key}": value for key, value in parts.items()}
        dense[f"{name}.weight"] = back
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=format, ignore=list(ignore),
                                quantization_status="compressed").model_dump(mode="json")
    write(case, source, state, config, dense)


PER_TOKEN = dict(num_bits=8, type="int", strategy="token", dynamic=True, symmetric=True)


def quantised_cases():
    quantised("int8-channel", 1, ODD, "int-quantized", int_args(num_bits=8, strategy="channel"), activations=PER_TOKEN)
    quantised("int8-tensor", 2, ODD, "int-quantized", int_args(num_bits=8, strategy="tensor"), torch.float32, PER_TOKEN)
    quantised("int8-packed", 3, ODD, "pack-quantized", int_args(num_bits=8, strategy="channel"), torch.float16)
    quantised("int4-group-32", 4, GROUPS_32, "pack-quantized", int_args(num_bits=4, strategy="group", group_size=32))
    quantised("int4-group-128-zero", 5, GROUPS_128, "pack-quantized",
              int_args(num_bits=4, strategy="group", group_size=128, symmetric=False),
              ignore=("lm_head", "re:.*o_proj$"))
    quantised("int4-group-64-zero", 8, GROUPS_64, "pack-quantized",
              int_args(num_bits=4, strategy="group", group_size=64, symmetric=False))
    quantised("int4-channel-zero", 6, GROUPS_32, "pack-quantized",
              int_args(num_bits=4, strategy="channel", symmetric=False), torch.float16)


def bitmask_case():
    """Half of the weights zero, among them a whole row; one matrix with no zero, one with nothing else."""
    from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskCompressor
    from compressed_tensors.config import BitmaskConfig

    source = model(ODD, 7, layers=2)
    for i, (name, module) in enumerate(linears(source)):
        weight = module.weight.data
        if i == 0:
            continue
        weight[torch.rand(weight.shape) < 0.5] = 0
        weight[i % weight.shape[0]] = 0
        if i == 1:
            weight.zero_()
    dense = {f"{name}.weight": module.weight.detach().clone() for name, module in linears(source)}
    config = BitmaskConfig(targets=["Linear"], ignore=["lm_head"], global_sparsity=0.5)
    compressor = BitmaskCompressor(config=config)
    state = compressor.compress(dict(source.state_dict()), {name for name, _ in linears(source)})
    for name in dense:
        parts = {key: state[f"{name.removesuffix('.weight')}.{key}"] for key in compressor.compression_param_names}
        assert torch.equal(compressor.decompress_weight(parts), dense[name])
    quantization_config = {"quant_method": "compressed-tensors", "sparsity_config": config.model_dump()}
    write("sparse-bitmask", source, state, quantization_config, dense)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitmask", action="store_true")
    bitmask_case() if parser.parse_args().bitmask else quantised_cases()
