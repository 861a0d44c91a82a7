"""Every operator with arguments that it takes: what tests of all operators go over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparrow_llm import ops

Call = tuple[Callable[..., Any], dict[str, Tensor]]


def sparse(
    x: Tensor, bitmask: Tensor, compressed: Tensor, row_offsets: Tensor, weight_scale: Any, b: Tensor
) -> Tensor:
    return ops.sparse_linear(x, ops.PackedWeight(bitmask, compressed, row_offsets, weight_scale), b)


def calls() -> dict[str, Call]:
    """Every operator with arguments that it takes."""
    x, w, b = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    q, scale = ops.quantize_int8(w)
    packed, packed_int8 = ops.pack(w), ops.pack(q, scale)
    table = torch.ops.sparrow.quantize_int8(w)
    gate, down, active = torch.randn(5, 8), torch.randn(5, 8), torch.rand(3, 5) < 0.5
    mlp = {"x": x, "gate": gate, "up": w, "down": down, "active": active}
    vectors = {"gate_bias": b, "up_bias": b, "down_bias": torch.randn(8), "gate_values": torch.randn(3, 5)}
    q_heads, kv = torch.randn(2, 4, 8), torch.randn(2, 2, 128, 8)
    key_blocks, value_blocks = ops.pack_kv(kv, kv, 0.5, 0.25)
    lengths = torch.tensor([[2, 3], [1, 0]])
    cache = {
        "key_blocks": key_blocks,
        "value_blocks": value_blocks,
        "keys": kv,
        "values": kv,
        "lengths": lengths,
    }
    return {
        "dense_linear": (ops.dense_linear, {"x": x, "w": w, "b": b}),
        "int8_linear": (ops.int8_linear, {"x": x, "q": q, "scale": scale, "b": b}),
        "quantize_int8": (ops.quantize_int8, {"w": w}),
        "pack": (ops.pack, {"w": w}),
        "sparse_linear": (sparse, {"x": x, **packed._asdict(), "b": b}),
        "sparse_linear of int8": (sparse, {"x": x, **packed_int8._asdict(), "b": b}),
        "select": (partial(ops.select, rule="top-k=2"), {"scores": x}),
        "sparse_mlp": (partial(ops.sparse_mlp, activation="silu"), {**mlp, **vectors}),
        "sparse_mlp of int8": (
            partial(ops.sparse_mlp, activation="silu"),
            {**mlp, "gate": table, "up": table, "down": table},
        ),
        "sparse_mlp_forward": (
            partial(ops.sparse_mlp_forward, activation="silu"),
            {"x": x, "concat_gate_up": torch.stack([gate, w]), "down": down, "active": active},
        ),
        "pack_kv": (partial(ops.pack_kv, key_sparsity=0.5, value_sparsity=0.5), {"keys": kv, "values": kv}),
        "sparse_attention_decode": (ops.sparse_attention_decode, {"q": q_heads, **cache}),
    }
