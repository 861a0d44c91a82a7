"""A linear layer on the weight that torch has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from .rows import torch_is_faster


class DenseLinear(torch.nn.Linear):
    """`torch.nn.Linear` by whichever of Sparrow and torch is faster for the number of rows, on the same
    weight tensor.

    Parameters, their names and the state dict are those of `torch.nn.Linear`, and so are gradients.
    """

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear) -> DenseLinear:
        """The layer with the parameters of `linear`, which both share."""
        made = cls.__new__(cls)
        torch.nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        rows = input.numel() // max(self.in_features, 1)
        if torch_is_faster(self.weight.dtype, rows):
            return F.linear(input, self.weight, self.bias)
        return ops.dense_linear(input, self.weight, self.bias)
