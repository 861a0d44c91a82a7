"""Sparse MLPs as modules, and the cache that follows their active neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparrow_llm import nn, ops
from sparrow_llm.errors import DTypeError, OptionError, ShapeError

pytestmark = pytest.mark.torch


def projections(bias: bool = True) -> tuple[torch.nn.Linear, torch.nn.Linear, torch.nn.Linear]:
    return torch.nn.Linear(8, 40, bias), torch.nn.Linear(8, 40, bias), torch.nn.Linear(40, 8, bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_zeros_of_relu_are_left_out_without_loss(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    gate, up, down = projections(bias)
    x = torch.randn(rows, 8)
    with torch.no_grad():
        expected = down(F.relu(gate(x)) * up(x))
        mlp = nn.SparseMLP(gate, up, down, "relu")
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(down(F.relu(gate(x)) * up(x)), expected)
        assert torch.equal(mlp.active(x), gate(x) > 0)
        ungated = nn.SparseMLP(None, up, down, "relu")
        torch.testing.assert_close(ungated(x), down(F.relu(up(x))))


def test_down_keeps_shape_values_and_memory() -> None:
    gate, up, down = projections()
    before = down.weight.detach().clone()
    mlp = nn.SparseMLP(gate, up, down, "silu", "quantile=0.5")
    assert torch.equal(down.weight, before) and mlp.down.weight is down.weight
    assert down.weight.t().is_contiguous()
    assert set(mlp.state_dict()) == {f"{p}.{t}" for p in ("gate", "up", "down") for t in ("weight", "bias")}


def test_predictors_and_given_masks() -> None:
    torch.manual_seed(0)
    gate, up, down = projections()
    x = torch.randn(4, 8)
    predictor = torch.nn.Linear(8, 40)
    mlp = nn.SparseMLP(gate, up, down, "silu", "top-k=10", predictor)
    with torch.no_grad():
        active = mlp.active(x)
        assert (active.sum(-1) == 10).all() and torch.equal(active, ops.select(predictor(x), "top-k=10"))
        expected = down(F.silu(gate(x)) * up(x) * active)
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(mlp(x, active), expected)
        compiled = torch.compile(mlp, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
    with pytest.raises(OptionError, match="activation"):
        nn.SparseMLP(gate, up, down, "sigmoid")


@given(
    st.lists(st.tuples(st.integers(0, 2**32), st.floats(0, 1)), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([1, 63, 200]),
)
@settings(max_examples=60, deadline=None)
def test_the_cache_holds_the_active_neurons_and_counts_what_it_moves(
    steps: list[tuple[int, float]], gated: bool, neurons: int
) -> None:
    hidden = 5
    gate, up, down = (torch.randn(neurons, hidden) for _ in range(3))
    cache = nn.WeightCache(gate if gated else None, up, down)
    pool = cache.active_down.untyped_storage().data_ptr()
    there = torch.zeros(neurons, dtype=torch.bool)
    removals = additions = pairs = 0
    for seed, density in steps:
        mask = torch.rand(neurons, generator=torch.Generator().manual_seed(seed)) < density
        moves = cache.stats.moves
        cache.update_active_weights(mask)
        left, came = int((there & ~mask).sum()), int((mask & ~there).sum())
        removals, additions, pairs = removals + left, additions + came, pairs + min(left, came)
        ids = cache.neurons
        assert sorted(ids.tolist()) == mask.nonzero().flatten().tolist() and len(cache) == len(ids)
        both = [gate, up] if gated else [up]
        assert torch.equal(cache.active_gate_up, torch.stack(both)[:, ids])
        assert torch.equal(cache.active_down, down[ids])
        # Only what leaves without a replacement makes others move.
        assert cache.stats.moves - moves <= max(left - came, 0)
        there = mask
    stats = cache.stats
    assert (stats.removals, stats.additions, stats.paired_replacements) == (removals, additions, pairs)
    assert stats.updates == len(steps)
    assert stats.bytes_moved == (additions + stats.moves) * (3 if gated else 2) * hidden * 4
    # The views are the pool itself.
    assert cache.active_down.untyped_storage().data_ptr() == pool
    assert cache.active_gate_up.untyped_storage().data_ptr() == pool


def test_the_cache_gives_the_mlp_of_its_neurons() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        gate, up, down = (torch.randn(40, 8).to(dtype) for _ in range(3))
        x, mask = torch.randn(3, 8).to(dtype), torch.rand(40) < 0.4
        cache = nn.WeightCache(gate, up, down, mask)
        found = ops.sparse_mlp_forward(x, cache.active_gate_up, cache.active_down, None, "silu")
        torch.testing.assert_close(
            found, ops.sparse_mlp(x, gate, up, down, mask, "silu"), atol=1e-3, rtol=1e-2
        )


def test_masks_that_do_not_fit_are_refused_and_change_nothing() -> None:
    w = torch.randn(10, 4)
    cache = nn.WeightCache(w, w, w, torch.arange(10) < 3, slots=4)
    for mask, error in [
        (torch.ones(9, dtype=torch.bool), ShapeError),
        (torch.ones(10), DTypeError),
        (torch.ones(10, dtype=torch.bool), OptionError),
        ([True] * 10, DTypeError),
    ]:
        with pytest.raises(error):
            cache.update_active_weights(mask)  # type: ignore[arg-type]
    assert cache.neurons.tolist() == [0, 1, 2] and cache.stats.updates == 1
    with pytest.raises(ShapeError, match="down"):
        nn.WeightCache(w, w, w.t())


def update(cache: dict[str, Tensor], **changed: Any) -> Tensor:
    return torch.ops.sparrow.update_pool(*{**cache, **changed}.values())


def test_state_that_does_not_fit_is_refused() -> None:
    """The state of a pool is plain tensors, which anybody may change."""
    w = torch.randn(10, 4)
    state = {
        "pool": torch.zeros(4, 3, 4),
        "neuron_of": torch.zeros(4, dtype=torch.int64),
        "length": torch.tensor(1),
        "active": torch.arange(10) < 3,
        "gate": w,
        "up": w,
        "down": w,
    }
    assert update(state).tolist() == [3, 0, 2, 0, 0]
    for name, value in {
        "pool": torch.zeros(4, 2, 4),
        "neuron_of": torch.full((4,), 10),
        "length": torch.tensor(5),
        "gate": None,
        "up": w.double(),
        "down": w[:, :3],
    }.items():
        with pytest.raises(RuntimeError, match="sparrow::update_pool"):
            update(state, **{name: value})
    for wrong in (-1, 2**62):
        with pytest.raises(RuntimeError, match="neuron_of|length"):
            update(state, neuron_of=torch.full((4,), wrong))
        with pytest.raises(RuntimeError, match="length"):
            update(state, length=torch.tensor(wrong))
    shared = torch.zeros(10, 3, 4)
    with pytest.raises(RuntimeError, match="memory of its own"):
        update(state, pool=shared[:4], up=shared[:, 0])
