"""Models of transformers that tests compare with: the demo, and tiny random ones of every family."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from conftest import DEMO
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SMALL = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": dict(sliding_window=None),
    "Qwen2": {},
    "Qwen3": dict(head_dim=8),
    "Phi3": {},
    "Gemma": dict(head_dim=8),
    "Gemma2": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "Gemma3Text": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "OPT": dict(ffn_dim=64, word_embed_proj_dim=32, do_layer_norm_before=True),
}


def random_model(family: str, **changes: Any) -> Any:
    """A tiny random model of a family, in float32 and always the same."""
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family], **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def demo_model() -> Any:
    """The demo model as transformers runs it, in float32."""
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


def demo_tokenizer() -> PreTrainedTokenizerFast:
    """Its tokenizer, which pads on the left."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DEMO / "tokenizer.json"), padding_side="left")
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = "<|endoftext|>"
    return tokenizer
