"""An MLP that reads the weights of active neurons only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..errors import OptionError

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class SparseMLP(torch.nn.Module):
    """An MLP, gated or not, of which each row of the input computes its active neurons.

    Active are the neurons whose scores `rule` keeps, see `ops.select`. Scores are those of `predictor`, a
    module from `[..., hidden]` to `[..., neurons]`, or the magnitudes of the activated gate (without gate of
    up), which is then read whole. It has no gradients.
    """

    def __init__(
        self,
        gate: torch.nn.Linear | None,
        up: torch.nn.Linear,
        down: torch.nn.Linear,
        activation: str,
        rule: str = "fixed=0",
        predictor: torch.nn.Module | None = None,
    ) -> None:
        """Of the projections of an MLP, which it shares. The weight of `down` keeps its shape and its values,
        but its memory becomes one row per neuron."""
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise OptionError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, found {activation!r}")
        if not down.weight.t().is_contiguous():
            down.weight.data = down.weight.detach().t().contiguous().t()
        self.gate, self.up, self.down = gate, up, down
        self.activation, self.rule, self.predictor = activation, rule, predictor

    def active(self, x: Tensor) -> Tensor:
        """The mask of the neurons that are active for `x`, `[..., neurons]`."""
        return self._select(x)[0]

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mask, and the values of the gate if they were computed for it."""
        if self.predictor is not None:
            return ops.select(self.predictor(x), self.rule), None
        first = self.up if self.gate is None else self.gate
        values = ops.dense_linear(x, first.weight, first.bias)
        scores = _ACTIVATIONS[self.activation](values).abs()
        return ops.select(scores, self.rule), None if self.gate is None else values

    def forward(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`, with the neurons of the mask `active` where one is given."""
        values = None
        if active is None:
            active, values = self._select(x)
        gate, up, down = self.gate, self.up, self.down
        return ops.sparse_mlp(
            x,
            None if gate is None else gate.weight,
            up.weight,
            down.weight.t(),
            active,
            self.activation,
            gate_bias=None if gate is None else gate.bias,
            up_bias=up.bias,
            down_bias=down.bias,
            gate_values=values,
        )

    def extra_repr(self) -> str:
        """For printing."""
        return f"activation={self.activation!r}, rule={self.rule!r}"
