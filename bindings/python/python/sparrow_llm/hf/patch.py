"""Sparse MLPs in models of transformers, in place and on the same weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sparrow_llm import ops
from sparrow_llm.errors import GradientError, OptionError, UnsupportedModuleError

from .mlp_forms import PLAIN, Form, Projections, activation_name, form_of
from .selectors import Select, selectors

# Of the norm of an MLP's output: far above rounding to bfloat16, far below what another formula gives.
SAME = 0.05


class Patch:
    """What `patch` did to a model.

    Attributes:
        model: The model.
        selector: What decides which neurons are active.
        layers: Names of the modules whose MLPs are sparse.
    """

    def __init__(self, model: torch.nn.Module, selector: str, layers: list[str]) -> None:
        self.model, self.selector, self.layers = model, selector, layers

    def undo(self) -> None:
        """As `unpatch`."""
        unpatch(self.model)

    def __repr__(self) -> str:
        return f"Patch(selector={self.selector!r}, {len(self.layers)} layers of {type(self.model).__name__})"


def patch(
    model: torch.nn.Module,
    selector: str = "gate",
    *,
    layers: Sequence[int] | None = None,
    calibrated: str | os.PathLike[str] | None = None,
) -> Patch:
    """Makes the MLPs of a model sparse: each token computes its own neurons, at any number of rows.

    It changes the classes of modules, and nothing else that can be seen: names of modules and parameters,
    values, hooks of MLPs and the state dict stay. Weights are not copied; those of down projections are laid
    out anew, a neuron's together. A patched model has no gradients.

    Args:
        model: A Llama, Mistral, Qwen 2 or 3, Phi-3, Gemma 1 to 3 or OPT, or another with MLPs like theirs, on
            the CPU.
        selector: `gate[:RULE]` skips neurons whose gate is closed, `lowrank[:RULE]` those that are predicted
            so; `forced:active=F,overlap=P` takes random ones, for measuring speed; `dense` takes all. Rules
            are those of `ops.select`.
        layers: Numbers of the layers to patch; all by default.
        calibrated: A directory that `sparrow sparsify` wrote for this model: its thresholds hold where no
            rule is given, and its predictors. (transformers cannot load the model itself from there, since
            down projections are stored for Sparrow.)

    Raises:
        UnsupportedModuleError: A module cannot be replaced, which is named; or nothing can.
        OptionError: The selector cannot be used with this model.
    """
    found = [mlp for mlp in mlps(model) if layers is None or mlp.layer in layers]
    if layers is not None and (missing := set(layers) - {mlp.layer for mlp in found}):
        raise OptionError(f"layers: there is no MLP in layer {min(missing)}")
    if not found:
        name = type(model).__name__
        message = f"{name} has no MLPs like those of Llama, Phi-3 or OPT: use sparrow_llm.nn.SparseMLP"
        raise UnsupportedModuleError(message)
    for mlp in found:
        check(mlp)
    names = [activation_name(mlp.activation, mlp.path) for mlp in found]
    # One of each class.
    for mlp, name in {type(mlp.module): (mlp, name) for mlp, name in zip(found, names, strict=True)}.values():
        check_formula(mlp, name)
    relu = all(name in ("relu", "relu2") for name in names)
    of_layer = selectors(selector, None if calibrated is None else Path(calibrated), relu)
    selects = [of_layer(mlp.layer, mlp.form.projections(mlp.module)) for mlp in found]
    for mlp, name, select in zip(found, names, selects, strict=True):
        SparseMLP(mlp.module, mlp.form, name, select)
    return Patch(model, selector, [mlp.path for mlp in found])


def unpatch(model: torch.nn.Module) -> None:
    """Makes the MLPs of a model as they were before `patch`, on whatever weights they have now."""
    for module in list(model.modules()):
        sparse = module.__dict__.get("sparrow")
        if isinstance(sparse, SparseMLP):
            sparse.undo()


class SparseMLP:
    """What a patched module computes, and what it was.

    Args:
        mlp: The module that has the projections.
        form: Their names.
        activation: Its name for operators.
        select: What decides which neurons are active.
    """

    def __init__(self, mlp: torch.nn.Module, form: Form, activation: str, select: Select) -> None:
        self.mlp, self.form, self.activation, self.select = mlp, form, activation, select
        self.act: torch.nn.Module = getattr(mlp, form.activation)
        self.down: torch.nn.Linear = getattr(mlp, form.down)
        # OPT's decoder layer calls them one by one: the first computes all, the others pass it on.
        self.changed: list[Any] = [mlp.fc1, mlp.fc2] if form is PLAIN else [mlp]
        self.before = [type(module) for module in self.changed]
        self.changed[0].__class__ = sparse_class(cast(Any, self.before[0]))
        self.changed[0].__dict__["sparrow"] = self
        if form is PLAIN:
            mlp.fc2.__class__ = PassedLinear
            mlp.activation_fn = torch.nn.Identity()
        self.types = [type(getattr(mlp, name)) for name in form.linears]
        self.lay_out()

    def undo(self) -> None:
        """Makes the module what it was."""
        del self.changed[0].__dict__["sparrow"]
        for module, before in zip(self.changed, self.before, strict=True):
            module.__class__ = before
        if self.form is PLAIN:
            self.mlp.activation_fn = self.act
        self.down.weight.data = self.down.weight.detach().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        for name, expected in zip(self.form.linears, self.types, strict=True):
            if type(getattr(self.mlp, name)) is not expected:
                found = type(getattr(self.mlp, name)).__name__
                raise UnsupportedModuleError(f"{name} became a {found} after patch: unpatch and patch again")
        weights = self.form.projections(self.mlp)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
            result: Tensor = WithoutGradient.apply(self, x, *weights)  # type: ignore[no-untyped-call]
            return result
        return self.compute(x, weights)

    def compute(self, x: Tensor, weights: Projections) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        if weights.down.stride(-1) != 1:
            # Another tensor became the parameter.
            weights = weights._replace(down=self.lay_out())
        active, gate_values = self.select(x, weights, self.act)
        return sparse_mlp(x, weights, active, self.activation, gate_values)

    def lay_out(self) -> Tensor:
        """Puts the weights of down that belong to a neuron side by side; shape and values stay."""
        rows = self.down.weight.detach().t().contiguous()
        self.down.weight.data = rows.t()
        return rows


def sparse_mlp(
    x: Tensor, weights: Projections, active: Tensor | None, activation: str, gate_values: Tensor | None
) -> Tensor:
    """`ops.sparse_mlp` of these weights."""
    biases = {"gate_bias": weights.gate_bias, "up_bias": weights.up_bias, "down_bias": weights.down_bias}
    gate, up, down = weights[:3]
    return ops.sparse_mlp(x, gate, up, down, active, activation, **biases, gate_values=gate_values)


class WithoutGradient(torch.autograd.Function):
    """A forward pass that no backward pass goes through."""

    @staticmethod
    def forward(ctx: Any, sparse: SparseMLP, x: Tensor, *weights: Tensor | None) -> Tensor:
        return sparse.compute(x, Projections(*weights))  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise GradientError("patched MLPs have no gradient: call unpatch(model) before training")


class Sparse:
    """Before the class of a module: its forward pass is that of its `SparseMLP`."""

    sparrow: SparseMLP

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        return self.sparrow(x)


class PassedLinear(torch.nn.Linear):
    """A layer whose work was done before."""

    def forward(self, input: Tensor) -> Tensor:
        """What it is given."""
        return input


@cache
def sparse_class(of: Any) -> Any:
    """The class of a patched module, which is one of its own class too."""
    return type(f"Sparse{of.__name__}", (Sparse, of), {})


class FoundMLP(NamedTuple):
    """An MLP: its name, the number of its layer, the module that has its projections, and their names."""

    path: str
    layer: int
    module: torch.nn.Module
    form: Form

    @property
    def activation(self) -> torch.nn.Module:
        """Between the projections."""
        found: torch.nn.Module = getattr(self.module, self.form.activation)
        return found


def mlps(model: torch.nn.Module) -> Iterator[FoundMLP]:
    """The MLPs of the layers of a model."""
    for path, module in model.named_modules():
        form, layer = form_of(module), re.search(r"\blayers\.(\d+)\b", path)
        if form and layer:
            yield FoundMLP(path, int(layer[1]), module, form)


def check(mlp: FoundMLP) -> None:
    """Refuses what would compute something else, or not be called any more, once it is patched.

    Raises:
        UnsupportedModuleError: Names it.
    """
    path, _, module, form = mlp
    if isinstance(module, Sparse) or isinstance(getattr(module, form.first[0]), Sparse):
        raise UnsupportedModuleError(f"{path}: is patched already: call unpatch first")
    linears = [(f"{path}.{name}", getattr(module, name)) for name in form.linears]
    for name, part in [(path, module), (f"{path}.{form.activation}", mlp.activation), *linears]:
        if hasattr(part, "_hf_hook"):
            raise UnsupportedModuleError(f"{name}: accelerate moves its weights: load without device_map")
        if "forward" in part.__dict__:
            raise UnsupportedModuleError(f"{name}: something replaced its forward, which a patch would undo")
        if part is not module and (part._forward_hooks or part._forward_pre_hooks):
            raise UnsupportedModuleError(f"{name}: has hooks, which a patch would not call: remove them")
    for name, part in linears:
        if type(part) is not torch.nn.Linear:
            found = f"{type(part).__module__}.{type(part).__qualname__}"
            raise UnsupportedModuleError(
                f"{name}: expected a torch.nn.Linear, found a {found}: merge adapters, load without "
                "quantization, or undo what replaced it"
            )
        if part.weight.device.type != "cpu":
            found = str(part.weight.device)
            raise UnsupportedModuleError(f"{name}: expected a weight on the CPU, found one on {found}")


@torch.no_grad()
def check_formula(mlp: FoundMLP, activation: str) -> None:
    """Compares an MLP with what would replace it, on random inputs, all neurons active.

    Raises:
        UnsupportedModuleError: It computes something else.
    """
    weights, module = mlp.form.projections(mlp.module), mlp.module
    x = torch.randn(2, weights.up.shape[1], generator=torch.Generator().manual_seed(0)).to(weights.up.dtype)
    of_layer = mlp.form is PLAIN
    expected = module.fc2(mlp.activation(module.fc1(x))) if of_layer else module.forward(x)  # type: ignore[operator]
    weights = weights._replace(down=weights.down.contiguous())
    found = sparse_mlp(x, weights, None, activation, None)
    if not (found - expected).float().norm() <= SAME * expected.float().norm():
        raise UnsupportedModuleError(f"{mlp.path}: {type(module).__name__} is no down(act(gate(x)) * up(x))")
