"""Every operator with arguments that it takes: what tests of all operators go over."""

from __future__ import annotations

from collections.abc import Callable
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
    return {
        "dense_linear": (ops.dense_linear, {"x": x, "w": w, "b": b}),
        "int8_linear": (ops.int8_linear, {"x": x, "q": q, "scale": scale, "b": b}),
        "quantize_int8": (ops.quantize_int8, {"w": w}),
        "pack": (ops.pack, {"w": w}),
        "sparse_linear": (sparse, {"x": x, **packed._asdict(), "b": b}),
        "sparse_linear of int8": (sparse, {"x": x, **packed_int8._asdict(), "b": b}),
    }
