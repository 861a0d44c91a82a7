"""Shapes of results, for tensors without data (meta, fake).

The checks are those of the kernels. They raise the same exceptions with nearly the same words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import DeviceError, DTypeError, ShapeError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Function = TypeVar("Function", bound=Callable[..., Any])


def _fake(name: str) -> Callable[[Function], Function]:
    """Registers the function as the operator of this name for tensors without data."""

    def register(function: Function) -> Function:
        torch.library.register_fake(f"sparrow::{name}", function)
        return function

    return register


def _float(name: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise DTypeError(f"{name}: expected dtype float32, float16 or bfloat16, found {_name(t.dtype)}")


def _of_type(name: str, t: Tensor, dtype: torch.dtype) -> None:
    if t.dtype != dtype:
        raise DTypeError(f"{name}: expected dtype {_name(dtype)}, found {_name(t.dtype)}")


def _same_type(x: Tensor, name: str, t: Tensor) -> None:
    if t.dtype != x.dtype:
        raise DTypeError(f"{name}: expected the dtype of x, {_name(x.dtype)}, found {_name(t.dtype)}")


def _of_shape(name: str, t: Tensor, shape: Sequence[int], what: str) -> None:
    if t.dim() != len(shape) or any(found != expected for found, expected in zip(t.shape, shape)):
        raise ShapeError(f"{name}: expected shape {what} = {list(shape)}, found {list(t.shape)}")


def _matrix(name: str, t: Tensor, what: str) -> None:
    if t.dim() != 2:
        raise ShapeError(f"{name}: expected 2 dimensions {what}, found shape {list(t.shape)}")


def _one_device(x: Tensor, **others: Tensor | None) -> None:
    for name, t in others.items():
        if t is not None and t.device != x.device:
            raise DeviceError(f"{name}: expected the device of x, {x.device}, found {t.device}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _linear(x: Tensor, n: int, k: int, b: Tensor | None) -> Tensor:
    """What a linear layer of `[n, k]` weights gives for x."""
    _float("x", x)
    if x.dim() == 0:
        raise ShapeError("x: expected shape [..., in_features], found a tensor without dimensions")
    if x.shape[-1] != k:
        raise ShapeError(f"x: expected shape [..., {k}] by the weight [{n}, {k}], found {list(x.shape)}")
    if b is not None:
        _same_type(x, "b", b)
        _of_shape("b", b, [n], "[out_features]")
    return x.new_empty((*x.shape[:-1], n))


@_fake("dense_linear")
def dense_linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    _one_device(x, w=w, b=b)
    _same_type(x, "w", w)
    _matrix("w", w, "[out_features, in_features]")
    return _linear(x, w.shape[0], w.shape[1], b)


@_fake("int8_linear")
def int8_linear(x: Tensor, q: Tensor, scale: Tensor, b: Tensor | None = None) -> Tensor:
    _one_device(x, q=q, scale=scale, b=b)
    _of_type("q", q, torch.int8)
    _of_type("scale", scale, torch.float32)
    _matrix("q", q, "[out_features, in_features]")
    shape = [q.shape[0]] if scale.dim() == 1 else [q.shape[0], 1]
    _of_shape("scale", scale, shape, "[out_features] or [out_features, 1]")
    return _linear(x, q.shape[0], q.shape[1], b)


@_fake("quantize_int8")
def quantize_int8(w: Tensor) -> Tensor:
    _float("w", w)
    _matrix("w", w, "[out_features, in_features]")
    n, k = w.shape
    return w.new_empty((n, (k + 3) // 4 * 4 + 4), dtype=torch.int8)


@_fake("pack")
def pack(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if w.dtype != torch.int8:
        _float("w", w)
    _matrix("w", w, "[out_features, in_features]")
    stored = torch.library.get_ctx().new_dynamic_size()
    n, k = w.shape
    return (
        w.new_empty((n, (k + 7) // 8), dtype=torch.uint8),
        w.new_empty((stored,)),
        w.new_empty((n,), dtype=torch.int64),
    )


@_fake("sparse_linear")
def sparse_linear(
    x: Tensor,
    bitmask: Tensor,
    compressed: Tensor,
    row_offsets: Tensor,
    weight_scale: Tensor | None = None,
    b: Tensor | None = None,
    *,
    check_invariants: bool = True,
) -> Tensor:
    _one_device(
        x, bitmask=bitmask, compressed=compressed, row_offsets=row_offsets, weight_scale=weight_scale, b=b
    )
    _float("x", x)
    _of_type("bitmask", bitmask, torch.uint8)
    _matrix("bitmask", bitmask, "[out_features, ceil(in_features / 8)]")
    _of_type("row_offsets", row_offsets, torch.int64)
    n, k = bitmask.shape[0], x.shape[-1] if x.dim() else 0
    _of_shape("bitmask", bitmask, [n, (k + 7) // 8], "[out_features, ceil(in_features / 8)] by x")
    _of_shape("row_offsets", row_offsets, [n], "[out_features] by the bitmask")
    if compressed.dim() != 1:
        raise ShapeError(f"compressed: expected 1 dimension [stored], found shape {list(compressed.shape)}")
    if compressed.dtype == torch.int8:
        if weight_scale is None:
            raise DTypeError("weight_scale: int8 weights need one, found None")
        _of_type("weight_scale", weight_scale, torch.float32)
        _of_shape("weight_scale", weight_scale, [n, 1], "[out_features, 1] by the bitmask")
    else:
        _same_type(x, "compressed", compressed)
    return _linear(x, n, k, b)


@_fake("select")
def select(scores: Tensor, rule: str) -> Tensor:
    _float("scores", scores)
    if scores.dim() == 0:
        raise ShapeError("scores: expected shape [..., n], found a tensor without dimensions")
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _mlp(x: Tensor, neurons: int, active: Tensor | None, **weights: Tensor | None) -> Tensor:
    """What an MLP gives for x, whose `weights` end with rows of the hidden size."""
    _one_device(x, active=active, **weights)
    _float("x", x)
    if x.dim() == 0:
        raise ShapeError("x: expected shape [..., hidden], found a tensor without dimensions")
    for name, w in weights.items():
        if w is None:
            continue
        hidden = x.shape[-1]
        if w.dtype == torch.int8:
            hidden = (hidden + 3) // 4 * 4 + 4
        else:
            _same_type(x, name, w)
        if w.dim() not in (2, 3) or w.shape[-1] != hidden:
            raise ShapeError(f"{name}: expected shape [neurons, {hidden}], found {list(w.shape)}")
    if active is not None:
        _of_type("active", active, torch.bool)
        shape = [neurons] if active.dim() == 1 else [*x.shape[:-1], neurons]
        _of_shape("active", active, shape, "[neurons] or [..., neurons]")
    return x.new_empty(x.shape)


@_fake("sparse_mlp")
def sparse_mlp(
    x: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    active: Tensor | None,
    activation: str,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_values: Tensor | None = None,
) -> Tensor:
    _matrix("up", up, "[neurons, hidden]")
    _matrix("down", down, "[neurons, hidden]")
    vectors = {"gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias, "gate_values": gate_values}
    _one_device(x, **vectors)
    for name, t in vectors.items():
        if t is not None:
            _same_type(x, name, t)
    return _mlp(x, up.shape[0], active, gate=gate, up=up, down=down)


@_fake("sparse_mlp_forward")
def sparse_mlp_forward(
    x: Tensor, concat_gate_up: Tensor, down: Tensor, active: Tensor | None, activation: str
) -> Tensor:
    _matrix("down", down, "[neurons, hidden]")
    return _mlp(x, down.shape[0], active, concat_gate_up=concat_gate_up, down=down)


@_fake("update_pool")
def update_pool(
    pool: Tensor,
    neuron_of: Tensor,
    length: Tensor,
    active: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    return neuron_of.new_empty(5)


@_fake("pack_kv")
def pack_kv(
    keys: Tensor, values: Tensor, key_sparsity: float, value_sparsity: float
) -> tuple[Tensor, Tensor]:
    _one_device(keys, values=values)
    _float("keys", keys)
    _same_type(keys, "values", values)
    if keys.dim() != 4:
        what = "[batch, kv_heads, tokens, head_dim]"
        raise ShapeError(f"keys: expected 4 dimensions {what}, found shape {list(keys.shape)}")
    _of_shape("values", values, keys.shape, "of keys")
    batch, kv_heads, tokens, head_dim = keys.shape
    elements = 64 * head_dim

    def blocks(sparsity: float) -> Tensor:
        # Kernels have the fraction as a float32.
        kept = elements - int(ctypes.c_float(sparsity).value * elements)
        size = 256 * ((head_dim + 31) // 32) + kept * keys.element_size()
        return keys.new_empty((batch, kv_heads, tokens // 64 + 1, size), dtype=torch.uint8)

    return blocks(key_sparsity), blocks(value_sparsity)


@_fake("sparse_attention_decode")
def sparse_attention_decode(
    q: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    check_invariants: bool = True,
) -> Tensor:
    parts = {"key_blocks": key_blocks, "value_blocks": value_blocks, "keys": keys, "values": values}
    _one_device(q, **parts, lengths=lengths)
    _float("q", q)
    _of_type("key_blocks", key_blocks, torch.uint8)
    _of_type("value_blocks", value_blocks, torch.uint8)
    _same_type(q, "keys", keys)
    _same_type(q, "values", values)
    _of_type("lengths", lengths, torch.int64)
    if q.dim() != 3:
        raise ShapeError(f"q: expected shape [batch, heads, head_dim], found {list(q.shape)}")
    for name, t in parts.items():
        if t.dim() != 4 or t.shape[0] != q.shape[0]:
            raise ShapeError(
                f"{name}: expected 4 dimensions, the first that of q, {q.shape[0]}, found shape {list(t.shape)}"
            )
    _of_shape("lengths", lengths, [q.shape[0], 2], "[batch, 2]")
    return q.new_empty(q.shape)
