"""Every argument that is not what it must be is refused by name, and nothing of it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_calls import calls
from torch import Tensor

from sparrow_llm import ops
from sparrow_llm.errors import DeviceError, DTypeError, GradientError, OptionError, ShapeError, SparrowError

pytestmark = pytest.mark.torch


def arguments(of: Callable[[Tensor], bool] = lambda t: True) -> list[Any]:
    """Every tensor argument of every operator that `of` holds for."""
    return [
        pytest.param(operator, name, id=f"{operator}-{name}")
        for operator, (_, given) in calls().items()
        for name, t in given.items()
        if t is not None and of(t)
    ]


def refused(operator: str, name: str, change: Callable[[Tensor], Any]) -> pytest.ExceptionInfo[SparrowError]:
    function, given = calls()[operator]
    given[name] = change(given[name])
    with pytest.raises(SparrowError) as refusal:
        function(**given)
    return refusal


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_another_dtype(operator: str, name: str) -> None:
    there = calls()[operator][1][name].dtype
    for dtype in {torch.float64, torch.int32, torch.bool, torch.complex64, torch.uint16} - {there}:
        refusal = refused(operator, name, lambda t: t.to(dtype))
        assert refusal.type is DTypeError
        assert name in str(refusal.value) or name == "compressed" and "weight_scale" in str(refusal.value)


@pytest.mark.parametrize(("operator", "name"), arguments(lambda t: t.is_floating_point()))
def test_another_type_of_floats_beside_others(operator: str, name: str) -> None:
    # What multiplies int8 may be any float.
    if len(calls()[operator][1]) > 1 and not ("int8" in operator and name in ("x", "b")):
        assert refused(operator, name, Tensor.half).type is DTypeError


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_no_tensor(operator: str, name: str) -> None:
    for value in ([1.0], "text", 3, object()):
        refusal = refused(operator, name, lambda t: value)
        assert refusal.type is DTypeError and name in str(refusal.value)


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_another_device(operator: str, name: str) -> None:
    if len(calls()[operator][1]) > 1:
        assert refused(operator, name, lambda t: t.to("meta")).type is DeviceError


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_another_layout(operator: str, name: str) -> None:
    refusal = refused(operator, name, Tensor.to_sparse)
    assert refusal.type is DeviceError and name in str(refusal.value)


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_another_number_of_dimensions(operator: str, name: str) -> None:
    for change in (lambda t: t.flatten()[0], lambda t: t.expand(2, 2, 2, *t.shape)):
        if name in ("x", "scores") and change(torch.zeros(1)).dim():
            continue
        refusal = refused(operator, name, change)
        assert refusal.type is ShapeError and name in str(refusal.value)


@pytest.mark.parametrize(("operator", "name"), arguments())
def test_another_size(operator: str, name: str) -> None:
    if len(calls()[operator][1]) == 1:
        return
    assert refused(operator, name, lambda t: t[..., :0]).type is ShapeError
    if name != "x":
        assert refused(operator, name, lambda t: t[:0]).type is ShapeError


@pytest.mark.parametrize(
    ("operator", "name"), [("dense_linear", "w"), ("int8_linear", "q"), ("quantize_int8", "w"), ("pack", "w")]
)
def test_columns_that_are_no_neighbours(operator: str, name: str) -> None:
    refusal = refused(operator, name, lambda t: t.t().contiguous().t())
    assert refusal.type is ShapeError and ".contiguous()" in str(refusal.value)
    # A row again and again lies within the memory of one.
    assert refused(operator, name, lambda t: t[:1].expand(t.shape)).type is ShapeError


@pytest.mark.parametrize("operator", ["sparse_linear", "sparse_linear of int8"])
def test_bits_that_do_not_fit_are_refused(operator: str) -> None:
    def changed(place: tuple[int, ...], value: int) -> Callable[[Tensor], Tensor]:
        def change(t: Tensor) -> Tensor:
            t = t.clone()
            t[place] = value
            return t

        return change

    for name, change in {
        "bitmask": changed((2, 0), 0b1111),
        "row_offsets": lambda t: t + torch.tensor([0, 1, 0, 0, 0]),
        "compressed": lambda t: torch.cat([t, t]),
    }.items():
        assert refused(operator, name, change).type is ShapeError
    for value in (-1, 2**62):
        assert refused(operator, "row_offsets", changed((0,), value)).type is ShapeError
    # Without counting bits, offsets are still in order and within the elements.
    x, packed = torch.randn(3, 8), ops.pack(torch.randn(5, 8))
    wrong = packed._replace(row_offsets=torch.tensor([0, 8, 2**40, 24, 32]))
    with pytest.raises(ShapeError):
        ops.sparse_linear(x, wrong, check_invariants=False)


def test_int8_rows_that_are_too_long() -> None:
    with pytest.raises(ShapeError, match="131072"):
        ops.quantize_int8(torch.zeros(1, 2**17 + 1))


def test_errors_of_the_dispatcher_have_the_same_text() -> None:
    x, w = torch.randn(3, 8), torch.randn(5, 7)
    with pytest.raises(RuntimeError, match=r"\[ShapeError\] x: expected shape \[\.\.\., 7\].*found \[3, 8\]"):
        torch.ops.sparrow.dense_linear(x, w)


@pytest.mark.parametrize("operator", [name for name in calls() if name not in ("dense_linear", "select")])
def test_gradients_are_refused_where_there_are_none(operator: str) -> None:
    function, given = calls()[operator]
    name = next(name for name, t in given.items() if t.is_floating_point())
    given[name] = given[name].clone().requires_grad_()
    with pytest.raises(GradientError, match="no_grad"):
        function(**given)
    with torch.no_grad():
        function(**given)


def test_threads() -> None:
    before = ops.get_num_threads()
    for wrong in (0, -1):
        with pytest.raises(OptionError):
            ops.set_num_threads(wrong)
    assert ops.get_num_threads() == before
