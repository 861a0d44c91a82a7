"""What decides which neurons of a patched MLP are active, named as the command `sparrow` names selectors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparrow_llm import ops
from sparrow_llm.errors import OptionError
from sparrow_llm.nn.rows import torch_is_faster

from .mlp_forms import Projections

Activation = Callable[[Tensor], Tensor]
USAGE = "dense, gate[:RULE], lowrank[:RULE] or forced:active=F,overlap=P"
# Steps until forced masks repeat.
CYCLE = 64


class Select(Protocol):
    """Decides for `x`, `[..., hidden]`."""

    def __call__(
        self, x: Tensor, weights: Projections, activation: Activation
    ) -> tuple[Tensor | None, Tensor | None]:
        """The mask, `[..., neurons]`, or none for all neurons; and gate · x where it was computed."""


class Dense:
    """All neurons."""

    def __call__(self, x: Tensor, weights: Projections, activation: Activation) -> tuple[None, None]:
        return None, None


class Gate:
    """Neurons whose activated gate, or up without gate, is large (CATS, arXiv 2404.08763)."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __call__(
        self, x: Tensor, weights: Projections, activation: Activation
    ) -> tuple[Tensor, Tensor | None]:
        if weights.gate is None:
            values = linear(x, weights.up, weights.up_bias)
            return ops.select(activation(values).abs(), self.rule), None
        values = linear(x, weights.gate, weights.gate_bias)
        return ops.select(activation(values).abs(), self.rule), values


class LowRank:
    """Neurons whose gate two thin matrices predict to be large (Deja Vu, arXiv 2310.17157)."""

    def __init__(self, a: Tensor, b: Tensor, bias: Tensor, rule: str) -> None:
        """Of `a` `[rank, hidden]`, `b` `[neurons, rank]` and `bias` `[neurons]`."""
        self.a, self.b, self.bias, self.rule = a, b, bias, rule

    def __call__(self, x: Tensor, weights: Projections, activation: Activation) -> tuple[Tensor, None]:
        return ops.select(linear(linear(x, self.a, None), self.b, self.bias), self.rule), None


class Forced:
    """Random neurons, for measuring speed."""

    def __init__(self, neurons: int, active: float, overlap: float, seed: int) -> None:
        """`active` of the neurons, of which the next row keeps `overlap`."""
        keep = round(neurons * active)
        replaced = min(round(keep * (1 - overlap)), neurons - keep)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(neurons, generator=generator)
        self.masks = torch.zeros(CYCLE, neurons, dtype=torch.bool)
        self.step = 0
        for mask in self.masks:
            mask[order[:keep]] = True
            kept = order[:keep][torch.randperm(keep, generator=generator)]
            others = order[keep:][torch.randperm(neurons - keep, generator=generator)]
            order = torch.cat([others[:replaced], kept[replaced:], kept[:replaced], others[replaced:]])

    def __call__(self, x: Tensor, weights: Projections, activation: Activation) -> tuple[Tensor, None]:
        rows = x.shape[:-1].numel()
        chosen = self.masks[(self.step + torch.arange(rows)) % CYCLE]
        self.step += rows
        return chosen.view(*x.shape[:-1], chosen.shape[-1]), None


def linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x · wᵀ + b by whichever of Sparrow and torch is faster."""
    if torch_is_faster(w.dtype, x.shape[:-1].numel()):
        return F.linear(x, w, b)
    return ops.dense_linear(x, w, b)


def selectors(text: str, directory: Path | None, relu: bool) -> Callable[[int, Projections], Select]:
    """What makes the selector of a layer, by its number and its weights.

    Args:
        text: As on the command line.
        directory: What `sparrow sparsify` wrote there holds where `text` has no rule.
        relu: Whether closed gates are exactly zero, which is the rule where there is no other.

    Raises:
        OptionError: There is no such selector, or it needs what calibration finds.
    """
    name, _, parameters = text.partition(":")
    if name == "dense" and not parameters:
        return lambda layer, weights: Dense()
    if name == "forced":
        active, overlap = forced_sizes(text)
        return lambda layer, weights: Forced(weights.up.shape[0], active, overlap, seed=layer)
    if name not in ("gate", "lowrank"):
        raise OptionError(f"selector: {text!r} is none that a patch can have: use {USAGE}")
    if parameters:
        ops.select(torch.zeros(1), parameters)
    record = None if directory is None else read_record(directory, name)
    stored = [] if record is None else [rule_text(threshold) for threshold in record["thresholds"]]

    def rule(layer: int) -> str:
        if not parameters and stored and layer >= len(stored):
            raise OptionError(
                f"calibrated: {directory} is of a model of {len(stored)} layers, this one has more"
            )
        return parameters or (stored[layer] if stored else "fixed=0")

    if name == "lowrank":
        return low_rank(directory, record, rule)
    if not (parameters or stored or relu):
        raise OptionError(
            "selector: gate needs a rule (gate:quantile=0.5) where closed gates are not exactly zero, or "
            "calibrated=DIR of `sparrow sparsify MODEL -o DIR --selector gate`"
        )
    return lambda layer, weights: Gate(rule(layer))


def low_rank(
    directory: Path | None, record: dict[str, Any] | None, rule: Callable[[int], str]
) -> Callable[[int, Projections], Select]:
    """Of the predictors in a directory."""
    if directory is None or record is None:
        raise OptionError(
            "selector: lowrank needs calibrated=DIR of `sparrow sparsify MODEL -o DIR --selector lowrank`"
        )
    if record["look_ahead"]:
        raise OptionError(
            "selector: predictors that look ahead read what a patch does not see: sparsify without"
        )
    from safetensors.torch import load_file

    tensors = load_file(directory / "sparrow.safetensors")

    def select(layer: int, weights: Projections) -> Select:
        threshold = rule(layer)
        names = [f"sparrow.layers.{layer}.predictor.{part}" for part in ("a", "b", "bias")]
        a, b, bias = (tensors[name].to(weights.up.dtype) for name in names)
        return LowRank(a, b, bias, threshold)

    return select


def read_record(directory: Path, name: str) -> dict[str, Any]:
    """What calibration found for a selector, as `sparrow.json` has it.

    Raises:
        OptionError: The directory has nothing of it.
    """
    file = directory / "sparrow.json"
    found: dict[str, Any] = json.loads(file.read_text())["method"] if file.is_file() else {}
    if name not in found:
        raise OptionError(f"calibrated: {directory} was not written by `sparrow sparsify --selector {name}`")
    record: dict[str, Any] = found[name]
    return record


def rule_text(threshold: dict[str, float]) -> str:
    """A rule of `sparrow.json` as it is written on command lines."""
    ((rule, value),) = threshold.items()
    return f"{rule}={value}"


def forced_sizes(text: str) -> tuple[float, float]:
    """The active fraction and the overlap.

    Raises:
        OptionError: It has another form, or they are no fractions.
    """
    match = re.fullmatch(r"forced:active=([\d.]+),overlap=([\d.]+)", text)
    sizes = [float(size) for size in match.groups()] if match else []
    if not sizes or not all(0 <= size <= 1 for size in sizes):
        raise OptionError(f"selector: expected forced:active=F,overlap=P with fractions, found {text!r}")
    return sizes[0], sizes[1]
