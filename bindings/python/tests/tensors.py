"""Tensors of every kind for tests of operators, and results in float64 with the bounds that kernels state."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sparrow_llm import _native

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
AMX = _native.isa() == "amx"

# Half a unit in the last place, relative, and the smallest step of subnormal numbers.
ROUNDING = {
    torch.float32: (2.0**-24, 2.0**-149),
    torch.float16: (2.0**-11, 2.0**-24),
    torch.bfloat16: (2.0**-8, 2.0**-133),
}


def layouts(draw: Any, t: Tensor) -> Tensor:
    """The same values in memory in some other way."""
    kind = draw(st.sampled_from(["as it is", "offset", "strided", "transposed", "expanded"]))
    if kind == "offset":
        whole = torch.zeros(t.numel() + 3, dtype=t.dtype)
        return whole[3:].view(t.shape).copy_(t)
    if kind == "strided" and t.dim():
        wide = t.new_zeros((*t.shape[:-1], 2 * t.shape[-1]))
        return wide[..., ::2].copy_(t)
    if kind == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "expanded" and t.dim() > 1:
        return t[:1].expand(t.shape)
    return t


def gapped(w: Tensor) -> Tensor:
    """The same matrix with a gap after each row."""
    wide = w.new_zeros((w.shape[0], w.shape[1] + 5))
    return wide[:, : w.shape[1]].copy_(w)


@st.composite
def shapes(draw: Any) -> tuple[list[int], int, int]:
    """Leading dimensions of x, in_features, out_features: empty ones and single rows among them."""
    leading = draw(st.lists(st.sampled_from([0, 1, 2, 3, 9]), max_size=3))
    k = draw(st.one_of(st.integers(0, 70), st.sampled_from([128, 257])))
    return leading, k, draw(st.integers(0, 40))


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """x · wᵀ + b in float64, and the same of magnitudes."""
    x, w = x.detach().double(), w.detach().double()
    y, size = x @ w.t(), x.abs() @ w.abs().t()
    if b is not None:
        y, size = y + b.double(), size + b.double().abs()
    return y, size


def bound(x: Tensor, w: Tensor, y: Tensor, size: Tensor, *, quantized: bool = False) -> Tensor:
    """How far a linear layer may be from y: what `Compute::linear` states, and the rounding of the result."""
    k, rows = x.shape[-1], math.prod(x.shape[:-1])
    few = rows <= 8
    allowed = (k / 8 + 16 if few else k + 16) * 2.0**-24 * size
    if AMX and not few and w.dtype == torch.bfloat16:
        allowed = allowed + 2.0**-8 * size
    if quantized and k:
        largest = x.detach().double().abs().amax(-1, keepdim=True)
        allowed = allowed + 2.0**-16 * largest * w.double().abs().sum(-1)
    relative, absolute = ROUNDING[x.dtype]
    return allowed * (1 + relative) + relative * y.abs() + absolute


def assert_close(found: Tensor, expected: Tensor, allowed: Tensor) -> None:
    """Every result is within its bound."""
    assert found.shape == expected.shape
    error = (found.detach().double() - expected).abs()
    worst = (error - allowed).max().item() if error.numel() else 0.0
    assert worst <= 0, f"{worst} beyond the bound"
