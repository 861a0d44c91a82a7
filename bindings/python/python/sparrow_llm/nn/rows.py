"""For how many rows torch's own linear layer is faster than Sparrow's."""

from __future__ import annotations

import torch

from .. import _native

# Ranges of rows, first and last, by tier and dtype; elsewhere Sparrow is faster.
_TORCH_IS_FASTER: dict[str, dict[torch.dtype, tuple[tuple[int, float], ...]]] = {}

_HERE = _TORCH_IS_FASTER.get(_native.isa(), {})


def torch_is_faster(dtype: torch.dtype, rows: int) -> bool:
    """Whether `torch.nn.functional.linear` takes less time than `ops.dense_linear` for so many rows."""
    return any(first <= rows <= last for first, last in _HERE.get(dtype, ()))
