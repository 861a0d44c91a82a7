"""A linear layer with weights in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops


class Int8Linear(torch.nn.Module):
    """A linear layer whose weight has 8 bits and a scale for each output: half of the bytes of bfloat16.

    The state dict has `weight` `[out_features, in_features]` int8, `weight_scale` `[out_features, 1]` float32
    and `bias`: `int-quantized` of compressed-tensors. It has no gradients.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        """Of `weight` `[out_features, in_features]` int8, `weight_scale` `[out_features]` or `[out_features,
        1]` float32 and `bias` `[out_features]`; views of `ops.quantize_int8` are used as they are."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale.reshape(-1, 1))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._join()

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear) -> Int8Linear:
        """The layer with the weight of `linear`, rounded: the largest magnitude of each row becomes 127."""
        with torch.no_grad():
            made = cls(*ops.quantize_int8(linear.weight), linear.bias)
        return made.train(linear.training)

    def _join(self) -> None:
        """Puts weight and scales into one table, which kernels read in place."""
        q, scale, n = self.weight, self.weight_scale, self.out_features
        width = (self.in_features + 3) // 4 * 4 + 4
        if q.stride() == (width, 1) and q.untyped_storage().data_ptr() == scale.untyped_storage().data_ptr():
            return
        table = q.new_zeros((n, width))
        codes, scales = ops.split_int8(table, self.in_features)
        self.weight, self.weight_scale = codes.copy_(q), scales.unsqueeze(1).copy_(scale)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Int8Linear:
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != torch.float32:
            self.weight_scale = scale.to(self.weight_scale.device)
        self._join()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "weight_scale"):
            destination[prefix + name] = destination[prefix + name].contiguous()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._join()

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return ops.int8_linear(input, self.weight, self.weight_scale, self.bias)

    def extra_repr(self) -> str:
        """For printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
