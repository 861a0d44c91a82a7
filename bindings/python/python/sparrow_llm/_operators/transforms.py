"""Operators under `torch.vmap` and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .fakes import FLOATS


def _batched(name: str) -> None:
    """Lets `torch.vmap` over the first argument, whose leading dimensions are free, be one call; over others,
    many."""
    operator = getattr(torch.ops.sparrow, name).default

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        first, *others = in_dims
        if first is not None and all(d is None for d in others):
            return operator(args[0].movedim(first, 0), *args[1:], **kwargs), 0
        each = [
            [a if d is None else a.select(d, i) for a, d in zip(args, in_dims)]
            for i in range(info.batch_size)
        ]
        return torch.stack([operator(*one, **kwargs) for one in each]), 0

    torch.library.register_vmap(f"sparrow::{name}", rule)


def autocast(arguments: Sequence[Any]) -> list[Any]:
    """The arguments with the floats cast that autocast casts for `linear`: all but float64, and scales."""
    dtype = torch.get_autocast_dtype("cpu")
    return [a.to(dtype) if isinstance(a, Tensor) and a.dtype in FLOATS else a for a in arguments]


_library = torch.library.Library("sparrow", "IMPL", "AutocastCPU")  # type: ignore[no-untyped-call]


def _casts(name: str, kept: Sequence[int] = ()) -> None:
    """Lets autocast cast arguments, but for those at the places `kept`."""
    operator = getattr(torch.ops.sparrow, name).default

    def cast(*args: Any, **kwargs: Any) -> Any:
        args = tuple(a if i in kept else c for i, (a, c) in enumerate(zip(args, autocast(args))))
        kwargs = dict(zip(kwargs, autocast(list(kwargs.values()))))
        with torch.autocast("cpu", enabled=False):
            return operator(*args, **kwargs)

    _library.impl(name, cast)  # type: ignore[no-untyped-call]


for _operator in ("dense_linear", "int8_linear", "sparse_linear", "select"):
    _batched(_operator)
for _operator in ("dense_linear", "sparse_mlp", "sparse_mlp_forward"):
    _casts(_operator)
# Scales stay in float32.
_casts("int8_linear", kept=(2,))
_casts("sparse_linear", kept=(4,))
