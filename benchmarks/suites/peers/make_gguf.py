#!/usr/bin/env python3
"""Writes llama.cpp's files for a Llama checkpoint: the same weights as bf16 and f16, and quantised as Q8_0 and Q4_0."""

import argparse
import pathlib

import gguf
import llama_cpp
import numpy
import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

STORED = {"bf16": gguf.GGMLQuantizationType.BF16, "f16": gguf.GGMLQuantizationType.F16}
FILE_TYPES = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "f16": gguf.LlamaFileType.MOSTLY_F16}
QUANTISED = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}


def names(config):
    """Hugging Face's name of every tensor → GGUF's."""
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    return lambda name: mapping.get_name(name, try_suffixes=(".weight",))


def interleaved(rows, heads):
    """Rows of a q or k projection: llama.cpp rotates neighbours (0, 1), (2, 3), … where the checkpoint rotates element i
    of a head with element i + half."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def frequency_factors(config):
    """What llama.cpp divides the frequencies of RoPE by, `[head_dim / 2]`; none without `rope_scaling`."""
    if config.rope_parameters["rope_type"] == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    return (config.rope_parameters["rope_theta"] ** -exponents / scaled).numpy()


def metadata(writer, config, dtype):
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")  # the engines are fed token ids


def converted(checkpoint, config, dtype):
    """GGUF name, function that gives the array, stored type, of every tensor; one array in memory at a time."""
    name_of = names(config)
    factors = frequency_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", lambda: factors, gguf.GGMLQuantizationType.F32
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():
                vector = len(tensors.get_slice(name).get_shape()) == 1

                def load(tensors=tensors, name=name, vector=vector):
                    tensor = tensors.get_tensor(name)
                    if name.endswith("q_proj.weight"):
                        tensor = interleaved(tensor, config.num_attention_heads)
                    if name.endswith("k_proj.weight"):
                        tensor = interleaved(tensor, config.num_key_value_heads)
                    if vector:
                        return tensor.float().numpy()
                    if dtype == "f16":
                        return tensor.to(torch.float16).numpy()
                    return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()

                yield name_of(name), load, gguf.GGMLQuantizationType.F32 if vector else STORED[dtype]


def write(checkpoint, dtype, out):
    config = AutoConfig.from_pretrained(checkpoint)
    writer = gguf.GGUFWriter(out, "llama")
    metadata(writer, config, dtype)
    for name, load, stored in converted(checkpoint, config, dtype):
        array = load()
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, load, _ in converted(checkpoint, config, dtype):
        writer.write_tensor_data(numpy.ascontiguousarray(load()))
    writer.close()


def quantise(source, kind, out, threads):
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread, options.ftype = threads, QUANTISED[kind]
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), options)
    if status != 0:
        raise RuntimeError(f"llama_model_quantize of {source} to {kind} failed with status {status}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=pathlib.Path, help="directory written by `sparrow synth`")
    parser.add_argument("out", type=pathlib.Path, help="directory for the .gguf files; those it has are kept")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in (*STORED, *QUANTISED):
        path = args.out / f"{kind}.gguf"
        if path.exists():
            continue
        partial = path.with_suffix(".partial")
        if kind in STORED:
            write(args.checkpoint, kind, partial)
        else:
            quantise(args.out / "bf16.gguf", kind, partial, args.threads)
        partial.rename(path)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
