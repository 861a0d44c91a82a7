"""A linear layer without the zeros of its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import OptionError
from ..ops import PackedWeight


class SparseLinear(torch.nn.Module):
    """A linear layer that stores, and reads, the elements of its weight that are not zero, and a bit for each
    element.

    The state dict has `shape`, `bitmask`, `compressed`, `row_offsets`, of int8 `weight_scale`, and `bias`:
    `sparse-bitmask` of compressed-tensors, and what `sparrow pack` writes. It has no gradients, and its
    tensors must not be changed in place.
    """

    shape: Tensor
    bitmask: Tensor
    compressed: Tensor
    row_offsets: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: PackedWeight, in_features: int, bias: Tensor | None = None) -> None:
        """Of a weight from `ops.pack`, and `bias` `[out_features]`."""
        super().__init__()
        self.out_features, self.in_features = packed.bitmask.shape[0], in_features
        self.register_buffer("shape", torch.tensor([self.out_features, in_features]))
        for name, part in packed._asdict().items():
            self.register_buffer(name, part)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._accepted = False

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, sparsity: float | None = None, *, dtype: torch.dtype | None = None
    ) -> SparseLinear:
        """The layer with the weight of `linear`.

        `sparsity`: the fraction of the weight, in 0..1, that becomes zero, the smallest magnitudes first;
        `None` keeps the zeros that there are. `dtype=torch.int8` rounds what is left to 8 bits, see
        `ops.quantize_int8`.
        """
        if dtype not in (None, linear.weight.dtype, torch.int8):
            raise OptionError(f"dtype: expected None or torch.int8, found {dtype}")
        with torch.no_grad():
            w = linear.weight if sparsity is None else prune(linear.weight, sparsity)
            packed = ops.pack(*ops.quantize_int8(w)) if dtype == torch.int8 else ops.pack(w)
        return cls(packed, linear.in_features, linear.bias).train(linear.training)

    @property
    def packed(self) -> PackedWeight:
        """The weight."""
        return PackedWeight(self.bitmask, self.compressed, self.row_offsets, self.weight_scale)

    @property
    def density(self) -> float:
        """The fraction of the weight that is stored."""
        return self.compressed.numel() / max(self.out_features * self.in_features, 1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseLinear:
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.weight_scale is not None and self.weight_scale.dtype != torch.float32:
            self.weight_scale = scale.to(self.weight_scale.device)
        self._accepted = False
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        shape = state_dict.get(prefix + "shape")
        if shape is not None and shape.tolist() != [self.out_features, self.in_features]:
            expected = [self.out_features, self.in_features]
            lists[-1].append(f"{prefix}shape: expected {expected}, found {shape.tolist()}")
        if prefix + "compressed" in state_dict:
            # Another weight of the same shape has other sizes.
            for name in ("compressed", "weight_scale"):
                there = state_dict.get(prefix + name)
                setattr(
                    self, name, None if there is None else torch.empty_like(there, device=self.bitmask.device)
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        self._accepted = False

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        y = ops.sparse_linear(input, self.packed, self.bias, check_invariants=not self._accepted)
        # A compiler sees no bits, so it has accepted nothing.
        if not self._accepted and not torch.compiler.is_compiling():
            self._accepted = True
        return y

    def extra_repr(self) -> str:
        """For printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.density:.3f}"
        )


def prune(w: Tensor, sparsity: float) -> Tensor:
    """The weight with this fraction of its elements set to zero, those of the smallest magnitudes; of equal
    ones the first."""
    if not 0 <= sparsity <= 1:
        raise OptionError(f"sparsity: expected a fraction in 0..1, found {sparsity}")
    count = int(sparsity * w.numel())
    if count == 0:
        return w.clone()
    magnitudes = w.abs().flatten()
    threshold = magnitudes.kthvalue(count).values
    dropped = magnitudes < threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    dropped[ties[: count - int(dropped.sum())]] = True
    return w.masked_fill(dropped.view_as(w), 0)
