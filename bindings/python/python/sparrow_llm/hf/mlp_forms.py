"""How models of transformers keep the parts of their MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from sparrow_llm.errors import UnsupportedModuleError

# Activations that operators compute, by the names that transformers has for them.
ACTIVATIONS = ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu")


class Projections(NamedTuple):
    """The weights of an MLP, `[neurons, hidden]` each, where they are; biases `[neurons]` and `[hidden]`."""

    gate: Tensor | None
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None


@dataclass(frozen=True)
class Form:
    """The names of an MLP's children."""

    first: tuple[str, ...]
    """What reads the input: gate and up, both in one, or up alone."""
    down: str
    activation: str

    @property
    def linears(self) -> tuple[str, ...]:
        """All projections."""
        return (*self.first, self.down)

    def projections(self, mlp: torch.nn.Module) -> Projections:
        """The weights, where they are."""
        weights = [getattr(mlp, name).weight for name in self.first]
        biases = [getattr(mlp, name).bias for name in self.first]
        if self is FUSED:
            weights = list(weights[0].chunk(2))
            biases = [None, None] if biases[0] is None else list(biases[0].chunk(2))
        down = getattr(mlp, self.down)
        gate, gate_bias = (None, None) if self is PLAIN else (weights[0], biases[0])
        return Projections(gate, weights[-1], down.weight.t(), gate_bias, biases[-1], down.bias)


# Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3.
GATED = Form(("gate_proj", "up_proj"), "down_proj", "act_fn")
# Phi-3.
FUSED = Form(("gate_up_proj",), "down_proj", "activation_fn")
# OPT, whose decoder layer has them itself.
PLAIN = Form(("fc1",), "fc2", "activation_fn")


def form_of(module: torch.nn.Module) -> Form | None:
    """How a module keeps an MLP, if it is one."""
    for form in (GATED, FUSED):
        if all(
            isinstance(getattr(module, name, None), torch.nn.Module)
            for name in (*form.linears, form.activation)
        ):
            return form
    # Vision models have children of these names too, which no decoder layer is around.
    return PLAIN if any(base.__name__ == "OPTDecoderLayer" for base in type(module).__mro__) else None


def activation_name(activation: torch.nn.Module, path: str) -> str:
    """What operators call an activation.

    Raises:
        UnsupportedModuleError: It is none of theirs.
    """
    for name in ACTIVATIONS:
        if type(ACT2FN[name]) is type(activation):
            return name
    found = type(activation).__name__
    raise UnsupportedModuleError(f"{path}: its activation {found} is none of {', '.join(ACTIVATIONS)}")
