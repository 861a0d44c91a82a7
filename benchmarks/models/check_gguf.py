#!/usr/bin/env python3
"""Compares what Sparrow reads from a GGUF file with the `gguf` package and with transformers.

usage: check_gguf.py FILE.gguf [TEXT...]      (SPARROW: the command, LOGITS: the built example `logits`)

1. Every tensor, decoded to f32, against the dequantisation of the `gguf` package: bit for bit.
2. Token ids of lines of the texts against transformers' reading of the converted directory, and of the file itself.
3. Logits after a prompt, from f32 weights, against transformers on the same weights.
Needs gguf, numpy, safetensors, torch, transformers.
"""
import os, subprocess, sys, tempfile, shutil
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

SPARROW = os.environ.get("SPARROW", "target/release/sparrow")
LOGITS = os.environ.get("LOGITS", "target/release/examples/logits")
PARTS = dict(attn_norm="input_layernorm", attn_q="self_attn.q_proj", attn_k="self_attn.k_proj", attn_v="self_attn.v_proj",
    attn_qkv="self_attn.qkv_proj", attn_output="self_attn.o_proj", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm",
    ffn_norm="post_attention_layernorm", ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj",
    post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm")


def hf_name(name, architecture, both_norms):
    stem, kind = name.rsplit(".", 1)
    whole = dict(token_embd="model.embed_tokens", output_norm="model.norm", output="lm_head").get(stem)
    if whole:
        return f"{whole}.{kind}"
    _, layer, part = stem.split(".")
    hf = PARTS[part]
    if part == "ffn_norm" and both_norms:
        hf = "pre_feedforward_layernorm"
    if part == "ffn_up" and architecture == "phi3":
        hf = "mlp.gate_up_proj"
    return f"model.layers.{layer}.{hf}.{kind}"


def check_tensors(path, directory):
    reader = GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    architecture = field("general.architecture")
    stored = {t.name: t for t in reader.tensors}
    both_norms = any("post_ffw_norm" in name for name in stored)
    files = [safe_open(f"{directory}/{f}", "np") for f in sorted(os.listdir(directory)) if f.endswith(".safetensors")]
    found = {name: file for file in files for name in file.keys()}
    checked = 0
    for name, tensor in stored.items():
        if name.startswith("rope_f"):
            continue
        expected = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = field("llama.attention.head_count" + ("_kv" if ".attn_k." in name else ""))
            shape = expected.shape
            expected = expected.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            expected = expected - np.float32(1)
        hf = hf_name(name, architecture, both_norms)
        actual = found.pop(hf).get_tensor(hf)
        assert actual.dtype == np.float32 and actual.shape == expected.shape, (name, actual.dtype, actual.shape, expected.shape)
        assert (actual.view(np.uint32) == expected.view(np.uint32)).all(), f"{name}: other bits"
        checked += 1
    assert not found, f"not in the file: {sorted(found)[:3]}"
    print(f"tensors: {checked} of {checked} have the same bits")


def check_tokens(path, directory, texts):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer
    lines = [line for text in texts for line in open(text, encoding="utf-8", newline="").read().split("\n") if line.strip()]
    lines = lines[:: max(1, len(lines) // 1000)][:1000]
    ours = Tokenizer.from_file(f"{directory}/tokenizer.json")
    readers = dict(directory=AutoTokenizer.from_pretrained(directory))
    try:
        readers["file"] = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path))
    except Exception as error:
        print("tokens: transformers does not read the file itself:", str(error)[:100])
    for name, theirs in readers.items():
        other = [l for l in lines if ours.encode(l).ids != theirs(l)["input_ids"]]
        print(f"tokens of {len(lines)} lines, transformers' {name}: {len(lines) - len(other)} equal", *map(repr, other[:3]))
        back = [l for l in lines if ours.decode(ours.encode(l).ids) != theirs.decode(theirs(l)["input_ids"], skip_special_tokens=True)]
        print(f"  decoded alike: {len(lines) - len(back)}", *map(repr, back[:3]))


def check_logits(path, directory):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    torch.manual_seed(0)
    worst = 0
    for length in (1, 7, 64):
        ids = torch.randint(0, model.config.vocab_size, (1, length))
        with torch.no_grad():
            expected = model(ids).logits[0, -1].numpy()
        out = subprocess.run([LOGITS, path, "f32", *map(str, ids[0].tolist())], stdout=subprocess.PIPE, check=True).stdout
        actual = np.frombuffer(out, np.float32)
        worst = max(worst, float(np.abs(actual - expected).max() / np.abs(expected).max()))
    print(f"logits: at most {worst:.1e} from transformers, relative to the largest")
    assert worst < 1e-3


if __name__ == "__main__":
    path, texts = sys.argv[1], sys.argv[2:]
    directory = tempfile.mkdtemp() + "/converted"
    subprocess.run([SPARROW, "convert", path, "-o", directory, "--dtype", "f32"], check=True, stderr=subprocess.DEVNULL)
    try:
        check_tensors(path, directory)
        check_tokens(path, directory, texts)
        check_logits(path, directory)
    finally:
        shutil.rmtree(os.path.dirname(directory))
