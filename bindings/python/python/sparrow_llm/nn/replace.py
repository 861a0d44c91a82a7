"""Linear layers of a model replaced in place."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

from ..errors import OptionError, SparrowError, UnsupportedModuleError
from .dense import DenseLinear
from .int8 import Int8Linear
from .sparse import SparseLinear

Kind = Literal["dense", "sparse", "int8", "sparse-int8"]

_MAKE: dict[str, Callable[[torch.nn.Linear], torch.nn.Module]] = {
    "dense": DenseLinear.from_linear,
    "sparse": SparseLinear.from_linear,
    "int8": Int8Linear.from_linear,
    "sparse-int8": lambda linear: SparseLinear.from_linear(linear, dtype=torch.int8),
}


class Replaced:
    """What `replace_linear_layers` did. It keeps the layers that were replaced, and so their memory, until it
    is dropped."""

    count: int
    """Layers that were replaced."""
    bytes: int
    """Bytes of the weights of the layers that replace them."""
    bytes_before: int
    """Bytes of the weights that were replaced."""

    def __init__(self) -> None:
        self._places: list[tuple[torch.nn.Module, str, torch.nn.Module, torch.nn.Module]] = []
        self.count = self.bytes = self.bytes_before = 0

    def _put(self, parent: torch.nn.Module, name: str, old: torch.nn.Module, new: torch.nn.Module) -> None:
        setattr(parent, name, new)
        self._places.append((parent, name, old, new))

    def undo(self) -> None:
        """Puts the layers back that were there before, where nobody has replaced them since."""
        for parent, name, old, new in reversed(self._places):
            if getattr(parent, name, None) is new:
                setattr(parent, name, old)
        self._places.clear()

    def __repr__(self) -> str:
        return f"Replaced(count={self.count}, bytes={self.bytes}, bytes_before={self.bytes_before})"


def replace_linear_layers(
    model: torch.nn.Module,
    kind: Kind = "dense",
    patterns: Sequence[str] = ("*",),
    exclude: Sequence[str] = ("lm_head",),
) -> Replaced:
    """Replaces every `torch.nn.Linear` of any model whose name matches a pattern and none to exclude.

    `kind`: `"dense"` shares the weight (`DenseLinear`); `"sparse"` stores what is not zero (`SparseLinear`:
    prune the model first); `"int8"` rounds weights to 8 bits (`Int8Linear`); `"sparse-int8"` does both.
    Patterns are those of shells, for whole names as in `model.named_modules()` or their last part:
    `"*.mlp.*"`, `"down_proj"`. Classes derived from `torch.nn.Linear` stay as they are.

    If a layer cannot be replaced, an exception names it, and all are as before.
    """
    make = _MAKE.get(kind)
    if make is None:
        raise OptionError(f"kind: expected one of {', '.join(_MAKE)}, found {kind!r}")
    replaced = Replaced()
    made: dict[int, torch.nn.Module] = {}
    try:
        for parent, name, path, linear in list(_linears(model)):
            if not _matches(path, patterns) or _matches(path, exclude):
                continue
            if id(linear) not in made:
                made[id(linear)] = _replacement(make, linear, path)
                replaced.count += 1
                replaced.bytes_before += linear.weight.nbytes
                replaced.bytes += _weight_bytes(made[id(linear)])
            replaced._put(parent, name, linear, made[id(linear)])
    except SparrowError:
        replaced.undo()
        raise
    if not replaced.count:
        raise OptionError(
            f"patterns: no torch.nn.Linear of the model matches {list(patterns)} without {list(exclude)}"
        )
    return replaced


def _linears(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, str, torch.nn.Linear]]:
    for path, parent in model.named_modules():
        # Not `named_children`, which leaves out the second name of a layer.
        for name, child in parent._modules.items():
            if child is not None and type(child) is torch.nn.Linear:
                yield parent, name, f"{path}.{name}".lstrip("."), child


def _matches(path: str, patterns: Sequence[str]) -> bool:
    last = path.rpartition(".")[2]
    return any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(last, p) for p in patterns)


def _replacement(
    make: Callable[[torch.nn.Linear], torch.nn.Module], linear: torch.nn.Linear, path: str
) -> torch.nn.Module:
    if hasattr(linear, "_hf_hook"):
        raise UnsupportedModuleError(
            f"{path}: accelerate moves its weight about; load the model without device_map"
        )
    if linear.weight.device.type != "cpu":
        raise UnsupportedModuleError(
            f"{path}: expected a weight on the CPU, found one on {linear.weight.device}"
        )
    if linear._forward_hooks or linear._forward_pre_hooks:
        raise UnsupportedModuleError(
            f"{path}: has hooks, which its replacement would lack; remove them first"
        )
    try:
        return make(linear)
    except SparrowError as error:
        raise UnsupportedModuleError(f"{path}: {error}") from error


def _weight_bytes(module: torch.nn.Module) -> int:
    parts = [*module.named_parameters(), *module.named_buffers()]
    return sum(t.nbytes for name, t in parts if name != "bias")
