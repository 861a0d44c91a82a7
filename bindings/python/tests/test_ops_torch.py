"""Operators beside the rest of torch: autograd, autocast, vmap, compilers, export."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from operator_calls import calls
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional as F

from sparrow_llm import ops
from sparrow_llm.errors import ShapeError

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield


def layer() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)


def native() -> list[Any]:
    """Arguments of every native operator."""
    x, w, b = layer()
    table = torch.ops.sparrow.quantize_int8(w)
    q, scale = ops.split_int8(table, 8)
    packed, packed_int8 = ops.pack(w), ops.pack(q, scale)
    kv, lengths = torch.randn(2, 2, 128, 8), torch.tensor([[2, 3], [1, 0]])
    space = torch.ops.sparrow
    cases = [
        (space.dense_linear, (x, w, b)),
        (space.dense_linear, (x, w)),
        (space.int8_linear, (x, q, scale, b)),
        (space.int8_linear, (x, q.contiguous(), scale.contiguous())),
        (space.quantize_int8, (w,)),
        (space.pack, (w,)),
        (space.pack, (q,)),
        (space.sparse_linear, (x, *packed[:3], None, b)),
        (space.sparse_linear, (x, *packed_int8, b)),
        (space.select, (x, "mean-std=0.5")),
        (space.sparse_mlp, (x, w, w, w, x.relu()[:, :5] > 0, "silu")),
        (space.sparse_mlp, (x, None, table, table, None, "gelu")),
        (space.sparse_mlp_forward, (x, torch.stack([w, w]), w, torch.rand(5) < 0.5, "relu")),
        (space.pack_kv, (kv, kv, 0.5, 0.25)),
        (
            space.sparse_attention_decode,
            (torch.randn(2, 4, 8), *ops.pack_kv(kv, kv, 0.5, 0.25), kv, kv, lengths),
        ),
        (
            space.update_pool,
            (torch.zeros(4, 2, 8), torch.zeros(4).long(), torch.tensor(0), b > 10, None, w, w),
        ),
    ]
    return [pytest.param(op.default, args, id=f"{op.__name__}-{i}") for i, (op, args) in enumerate(cases)]


@pytest.mark.parametrize(("operator", "args"), native())
def test_opcheck(operator: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator, args)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor | None]:
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    weights = torch.linspace(-1, 1, 5)
    (function(*inputs).tanh() * weights).sum().backward()
    return [t.grad for t in inputs]


@pytest.mark.parametrize("compiler", [None, "eager", "aot_eager"])
def test_gradients_are_those_of_linear(compiler: str | None) -> None:
    function: Callable[..., Tensor] = ops.dense_linear
    if compiler:
        function = torch.compile(function, backend=compiler, fullgraph=True)
    for shape in [(3, 8), (8,), (2, 3, 8), (0, 8)]:
        x, w, b = torch.randn(shape), *layer()[1:]
        for inputs in [(x, w, b), (x, w)]:
            found, expected = gradients(function, *inputs), gradients(F.linear, *inputs)
            for f, e in zip(found, expected):
                torch.testing.assert_close(f, e)


def test_gradients_of_gradients() -> None:
    x, w, b = (t.double().float().requires_grad_() for t in layer())

    def of(function: Callable[..., Tensor]) -> Tensor:
        (g,) = torch.autograd.grad(function(x, w, b).pow(3).sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), w)
        return h

    torch.testing.assert_close(of(ops.dense_linear), of(F.linear))


def test_only_wanted_gradients_are_computed() -> None:
    x, w, b = layer()
    y = ops.dense_linear(x, w.requires_grad_(), b)
    y.sum().backward()
    assert x.grad is None and b.grad is None and w.grad is not None
    with torch.no_grad():
        assert not ops.dense_linear(x, w, b).requires_grad
    assert not ops.dense_linear(x, w.detach(), b).requires_grad
    with torch.inference_mode():
        assert ops.dense_linear(x, w, b).is_inference()


def test_functional_gradients_and_batches_of_them() -> None:
    x, w, b = layer()

    def of(function: Callable[..., Tensor]) -> Tensor:
        def loss(x: Tensor, w: Tensor) -> Tensor:
            return function(x, w, b).pow(2).sum()

        return torch.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(x, w)

    torch.testing.assert_close(of(ops.dense_linear), of(F.linear))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_linear(dtype: torch.dtype) -> None:
    x, w, b = layer()
    q, scale = ops.quantize_int8(w)
    with torch.autocast("cpu", dtype=dtype):
        expected = F.linear(x, w, b)
        found = [
            ops.dense_linear(x, w, b),
            ops.int8_linear(x, q, scale, b),
            ops.sparse_linear(x, ops.pack(w), b),
            ops.sparse_linear(x, ops.pack(q, scale), b),
        ]
        trained = ops.dense_linear(x, w.clone().requires_grad_(), b)
    for y in [*found, trained]:
        assert y.dtype == expected.dtype == dtype
        torch.testing.assert_close(y, expected, atol=0.1, rtol=0.05)
    trained.float().sum().backward()


def test_vmap() -> None:
    _, w, b = layer()
    q, scale = ops.quantize_int8(w)
    x = torch.randn(4, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (
            lambda x: ops.dense_linear(x, w, b),
            lambda x: ops.int8_linear(x, q, scale, b),
            lambda x: ops.sparse_linear(x, ops.PackedWeight(*packed), b),
        ):
            packed = ops.pack(w)
            torch.testing.assert_close(torch.vmap(function, in_dims=1)(x), function(x.movedim(1, 0)))
            torch.testing.assert_close(torch.vmap(torch.vmap(function))(x), function(x))
        ws = torch.randn(4, 5, 8)
        found = torch.vmap(ops.dense_linear, in_dims=(0, 0, None))(x, ws, b)
    torch.testing.assert_close(found, torch.stack([F.linear(x, w, b) for x, w in zip(x, ws)]))


def everything(x: Tensor, w: Tensor, q: Tensor, scale: Tensor, packed: ops.PackedWeight, b: Tensor) -> Tensor:
    y = ops.dense_linear(x, w, b) + ops.int8_linear(x, q, scale, b)
    return y * 2 + ops.sparse_linear(x.relu(), packed, b)


@pytest.mark.parametrize(
    ("compiler", "dynamic"),
    [("eager", False), ("aot_eager", False), ("aot_eager", True), ("inductor", False)],
)
def test_compile(compiler: str, dynamic: bool) -> None:
    _, w, b = layer()
    q, scale = ops.quantize_int8(w)
    packed = ops.pack(w)
    compiled = torch.compile(everything, backend=compiler, fullgraph=True, dynamic=dynamic)
    for rows in (3, 4, 9):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x, w, q, scale, packed, b), everything(x, w, q, scale, packed, b))
        if compiler == "inductor":
            break


def test_compiled_errors_are_told() -> None:
    x, w, b = layer()
    compiled = torch.compile(ops.dense_linear, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="x: expected shape"):
        compiled(x[:, 1:], w, b)


def test_packing_may_be_compiled() -> None:
    x, w, _ = layer()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return ops.sparse_linear(x, ops.pack(w.relu()))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w), F.linear(x, w.relu()))


def test_export() -> None:
    x, w, b = layer()
    q, scale = ops.quantize_int8(w)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return everything(x, w, q, scale, packed, b)

    packed = ops.pack(w)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(Module(), (x,), dynamic_shapes=({0: rows},))
    other = torch.randn(7, 8)
    torch.testing.assert_close(exported.module()(other), Module()(other))


def test_trace() -> None:
    x, w, b = layer()
    traced = torch.jit.trace(lambda x: ops.dense_linear(x, w, b), (x,))
    torch.testing.assert_close(traced(2 * x), F.linear(2 * x, w, b))


@pytest.mark.parametrize("operator", list(calls()))
def test_fake_and_meta_tensors_have_the_shape_of_real_ones(operator: str) -> None:
    function, given = calls()[operator]
    real = function(**given)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = function(**{name: t if t is None else mode.from_tensor(t) for name, t in given.items()})
    results = [(real, fake)]
    if operator != "pack":
        meta = function(**{name: t if t is None else t.to("meta") for name, t in given.items()})
        results.append((real, meta))
    for real, other in results:
        pairs = [(real, other)] if isinstance(real, Tensor) else list(zip(real, other))
        for r, o in pairs:
            if r is not None and operator != "pack":
                assert r.shape == o.shape and r.stride() == o.stride() and r.dtype == o.dtype


def test_fake_tensors_are_checked() -> None:
    x, w, b = layer()
    wrong = x[:, 1:]
    with FakeTensorMode() as mode, pytest.raises(ShapeError, match="x: expected shape"):
        ops.dense_linear(mode.from_tensor(wrong), mode.from_tensor(w), mode.from_tensor(b))


def test_subclasses_stay() -> None:
    class Named(Tensor):
        pass

    x, w, b = layer()
    found = ops.dense_linear(x.as_subclass(Named), torch.nn.Parameter(w, requires_grad=False), b)
    assert type(found) is Named
