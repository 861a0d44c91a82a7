"""Operators give what float64 gives, within the bounds that the kernels state, for tensors of every shape and
layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import FLOATS, assert_close, bound, gapped, layouts, linear, shapes
from torch import Tensor

from sparrow_llm import ops

pytestmark = pytest.mark.torch


@st.composite
def layers(draw: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    leading, k, n = draw(shapes())
    dtype = draw(st.sampled_from(FLOATS))
    torch.manual_seed(draw(st.integers(0, 1000)))
    x, w = torch.randn(*leading, k).to(dtype), torch.randn(n, k).to(dtype)
    b = torch.randn(n).to(dtype) if draw(st.booleans()) else None
    w = gapped(w) if draw(st.booleans()) else w
    b = layouts(draw, b) if b is not None else None
    return layouts(draw, x), w, b


@given(layers())
@settings(max_examples=200, deadline=None)
def test_dense_linear(layer: tuple[Tensor, Tensor, Tensor | None]) -> None:
    x, w, b = layer
    y, size = linear(x, w, b)
    found = ops.dense_linear(x, w, b)
    assert found.dtype == x.dtype and found.is_contiguous()
    assert_close(found, y, bound(x, w, y, size))


@given(layers())
@settings(max_examples=100, deadline=None)
def test_int8_linear(layer: tuple[Tensor, Tensor, Tensor | None]) -> None:
    x, w, b = layer
    q, scale = ops.quantize_int8(w)
    exact = q.double() * scale[:, None].double()
    y, size = linear(x, exact, b)
    found = ops.int8_linear(x, q, scale, b)
    assert_close(found, y, bound(x, exact, y, size, quantized=True))
    # Codes and scales that do not lie in one table are copied into one.
    assert torch.equal(ops.int8_linear(x, q.contiguous(), scale.contiguous().unsqueeze(1), b), found)


@given(layers())
@settings(max_examples=100, deadline=None)
def test_quantize_int8_rounds_to_the_nearest_of_255_steps(
    layer: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    _, w, _ = layer
    q, scale = ops.quantize_int8(w)
    assert q.shape == w.shape and scale.shape == w.shape[:1]
    if w.numel():
        step = w.double().abs().amax(1, keepdim=True) / 127
        assert torch.allclose(scale.double()[:, None], step, rtol=1e-6)
        assert ((q.double() * step - w.double()).abs() <= step * (0.5 + 1e-5)).all()


@given(layers(), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_sparse_linear(layer: tuple[Tensor, Tensor, Tensor | None], density: float) -> None:
    x, w, b = layer
    w = torch.where(torch.rand(w.shape) < density, w, 0)
    packed = ops.pack(w)
    y, size = linear(x, w, b)
    for check_invariants in (True, False):
        found = ops.sparse_linear(x, packed, b, check_invariants=check_invariants)
        assert_close(found, y, bound(x, w, y, size))


@given(layers(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_sparse_int8_is_int8_without_its_zeros(
    layer: tuple[Tensor, Tensor, Tensor | None], density: float
) -> None:
    x, w, b = layer
    q, scale = ops.quantize_int8(torch.where(torch.rand(w.shape) < density, w, 0))
    packed = ops.pack(q, scale)
    assert packed.compressed.numel() == int((q != 0).sum())
    assert torch.equal(ops.sparse_linear(x, packed, b), ops.int8_linear(x, q, scale, b))


@given(layers(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_pack_is_sparse_bitmask(layer: tuple[Tensor, Tensor, Tensor | None], density: float) -> None:
    """Against the format as compressed-tensors describes it, spelled out."""
    _, w, _ = layer
    w = torch.where(torch.rand(w.shape) < density, w, 0)
    packed = ops.pack(w)
    n, k = w.shape
    stored = w != 0
    assert torch.equal(packed.compressed, w[stored])
    assert torch.equal(packed.row_offsets, stored.sum(1).cumsum(0) - stored.sum(1))
    bits = torch.zeros(n, (k + 7) // 8 * 8, dtype=torch.uint8)
    bits[:, :k] = stored
    values = bits.view(n, (k + 7) // 8, 8) << torch.arange(8, dtype=torch.uint8)
    assert torch.equal(packed.bitmask, values.sum(-1, dtype=torch.uint8))


def test_negative_zero_is_stored() -> None:
    packed = ops.pack(torch.tensor([[0.0, -0.0, 1.0]]))
    assert packed.compressed.tolist() == [0.0, 1.0] and packed.compressed[0].signbit()


def test_views_of_complex_tensors() -> None:
    """The imaginary part of a conjugate is a view with a flag that negates it, which memory alone does not
    show."""
    x, w = torch.randn(3, 8, dtype=torch.complex64).conj().imag, torch.randn(5, 8)
    assert x.is_neg()
    y, size = linear(x, w, None)
    assert_close(ops.dense_linear(x, w), y, bound(x, w, y, size))
    assert_close(ops.sparse_linear(x, ops.pack(w)), y, bound(x, w, y, size))


def test_nan_and_infinity_stay() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    found = ops.dense_linear(x, torch.ones(3, 2))
    assert found[0].isnan().all() and found[1].isinf().all()
    q, scale = ops.quantize_int8(torch.tensor([[1.0, float("inf")], [1.0, 2.0]]))
    assert scale.isnan().tolist() == [True, False]
    assert ops.int8_linear(torch.ones(1, 2), q, scale).isnan().tolist() == [[True, False]]


def test_large_tensors_are_converted_in_parallel() -> None:
    x, w = torch.randn(200, 333).bfloat16(), torch.randn(301, 333).bfloat16()
    y, size = linear(x, w, None)
    assert_close(ops.dense_linear(x, w), y, bound(x, w, y, size))
