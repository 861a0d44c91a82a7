"""Registers the native operators with torch, and what torch wants to know of them beside: shapes, batches.

The checks here are those of the kernels, for tensors without data (meta, fake). They raise the same exceptions with
nearly the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _native
from .errors import DeviceError, DTypeError, ShapeError

Tensor = torch.Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_native.register_operators(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))


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


@torch.library.register_fake("sparrow::dense_linear")
def _(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    _one_device(x, w=w, b=b)
    _same_type(x, "w", w)
    _matrix("w", w, "[out_features, in_features]")
    return _linear(x, w.shape[0], w.shape[1], b)


@torch.library.register_fake("sparrow::int8_linear")
def _(x: Tensor, q: Tensor, scale: Tensor, b: Tensor | None = None) -> Tensor:
    _one_device(x, q=q, scale=scale, b=b)
    _of_type("q", q, torch.int8)
    _of_type("scale", scale, torch.float32)
    _matrix("q", q, "[out_features, in_features]")
    shape = [q.shape[0]] if scale.dim() == 1 else [q.shape[0], 1]
    _of_shape("scale", scale, shape, "[out_features] or [out_features, 1]")
    return _linear(x, q.shape[0], q.shape[1], b)


@torch.library.register_fake("sparrow::quantize_int8")
def _(w: Tensor) -> Tensor:
    _float("w", w)
    _matrix("w", w, "[out_features, in_features]")
    n, k = w.shape
    return w.new_empty((n, (k + 3) // 4 * 4 + 4), dtype=torch.int8)


@torch.library.register_fake("sparrow::pack")
def _(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


@torch.library.register_fake("sparrow::sparse_linear")
def _(
    x: Tensor,
    bitmask: Tensor,
    compressed: Tensor,
    row_offsets: Tensor,
    weight_scale: Tensor | None = None,
    b: Tensor | None = None,
    *,
    check_invariants: bool = True,
) -> Tensor:
    _one_device(x, bitmask=bitmask, compressed=compressed, row_offsets=row_offsets, weight_scale=weight_scale, b=b)
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


def _batched(name: str) -> None:
    """Lets `torch.vmap` over the first argument, whose leading dimensions are free, be one call; over others, many."""
    operator = getattr(torch.ops.sparrow, name).default

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        first, *others = in_dims
        if first is not None and all(d is None for d in others):
            return operator(args[0].movedim(first, 0), *args[1:], **kwargs), 0
        each = [
            [a if d is None else a.select(d, i) for a, d in zip(args, in_dims)] for i in range(info.batch_size)
        ]
        return torch.stack([operator(*one, **kwargs) for one in each]), 0

    register: Callable[..., object] = torch.library.register_vmap
    register(f"sparrow::{name}", rule)


def autocast(arguments: Sequence[Any]) -> list[Any]:
    """The arguments with the floats cast that autocast casts for `linear`: all but float64, and scales."""
    dtype = torch.get_autocast_dtype("cpu")
    return [a.to(dtype) if isinstance(a, Tensor) and a.dtype in FLOATS else a for a in arguments]


_library = torch.library.Library("sparrow", "IMPL", "AutocastCPU")  # noqa: TOR901


def _casts(name: str, kept: Sequence[int] = ()) -> None:
    """Lets autocast cast arguments, but for those at the places `kept`."""
    operator = getattr(torch.ops.sparrow, name).default

    def cast(*args: Any, **kwargs: Any) -> Any:
        args = tuple(a if i in kept else c for i, (a, c) in enumerate(zip(args, autocast(args))))
        with torch.autocast("cpu", enabled=False):
            return operator(*args, **kwargs)

    _library.impl(name, cast)


for _operator in ("dense_linear", "int8_linear", "sparse_linear"):
    _batched(_operator)
_casts("dense_linear")
_casts("int8_linear", kept=(2,))
_casts("sparse_linear", kept=(4,))
