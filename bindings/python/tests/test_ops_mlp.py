"""MLPs of active neurons, selection and sparse attention against float64 within the bounds that the kernels
state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import AMX, FLOATS, ROUNDING, assert_close, gapped
from torch import Tensor
from torch.nn import functional as F

from sparrow_llm import ops
from sparrow_llm.errors import OptionError, ShapeError

pytestmark = pytest.mark.torch

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def exact(x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor, active: Tensor | None, name: str) -> Any:
    """The MLP in float64, and Σ |h| · |down| with magnitudes throughout."""
    x, up, down = x.double(), up.double(), down.double()
    a = ACTIVATIONS[name]

    def magnitude(w: Tensor) -> Tensor:
        return x.abs() @ w.abs().t()

    if gate is None:
        h, size = a(x @ up.t()), magnitude(up)
        size = size.square() if name == "relu2" else size
    else:
        gate = gate.double()
        of_gate = magnitude(gate).square() if name == "relu2" else magnitude(gate)
        h, size = a(x @ gate.t()) * (x @ up.t()), of_gate * magnitude(up)
    if active is not None:
        h, size = h * active, size * active
    return h @ down, size @ down.abs()


@st.composite
def mlps(draw: Any) -> dict[str, Any]:
    torch.manual_seed(draw(st.integers(0, 1000)))
    rows = draw(st.sampled_from([0, 1, 2, 8, 9, 20]))
    hidden, neurons = draw(st.sampled_from([1, 8, 33])), draw(st.sampled_from([0, 1, 63, 130]))
    dtype = draw(st.sampled_from(FLOATS))
    gate, up, down = (torch.randn(neurons, hidden).div(4).to(dtype) for _ in range(3))
    density = draw(st.sampled_from([0.0, 0.2, 0.95, 1.0]))
    kind = draw(st.sampled_from(["rows", "one", "all"]))
    masks = torch.rand(rows, neurons) < density
    active = {"rows": masks, "one": torch.rand(neurons) < density, "all": None}[kind]
    return {
        "x": torch.randn(rows, hidden).to(dtype),
        "gate": gate if draw(st.booleans()) else None,
        "up": gapped(up) if draw(st.booleans()) else up,
        "down": down,
        "active": active,
        "name": draw(st.sampled_from(list(ACTIVATIONS))),
    }


def allowed(mlp: dict[str, Any], y: Tensor, size: Tensor) -> Tensor:
    neurons, hidden = mlp["up"].shape
    relative, absolute = ROUNDING[mlp["x"].dtype]
    bound = (hidden / 8 + neurons + 80) * 2.0**-22 * size
    if AMX and mlp["x"].shape[0] > 8:
        # x, and what goes into down, rounded to bfloat16.
        bound = bound + 2.0**-6 * size
    return bound * (1 + relative) + relative * y.abs() + absolute


@given(mlps())
@settings(max_examples=150, deadline=None)
def test_sparse_mlp(mlp: dict[str, Any]) -> None:
    x, gate, up, down, active, name = mlp.values()
    y, size = exact(**mlp)
    bound = allowed(mlp, y, size)
    assert_close(ops.sparse_mlp(x, gate, up, down, active, name), y, bound)
    both = [up] if gate is None else [gate, up]
    stacked, side_by_side = torch.stack(both), torch.stack(both, 1).transpose(0, 1)
    found = ops.sparse_mlp_forward(x, stacked, down, active, name)
    assert_close(found, y, bound)
    # Where the same numbers lie makes no difference.
    assert torch.equal(ops.sparse_mlp_forward(x, side_by_side, down, active, name), found)
    assert torch.equal(ops.sparse_mlp_forward(x, torch.cat(both), down, active, name), found)


def test_biases_and_known_gates() -> None:
    torch.manual_seed(0)
    x, gate, up, down = torch.randn(3, 8), *(torch.randn(40, 8) for _ in range(3))
    gate_bias, up_bias, down_bias = torch.randn(40), torch.randn(40), torch.randn(8)
    active = torch.rand(3, 40) < 0.3
    values = F.linear(x, gate, gate_bias)
    expected = (F.silu(values) * F.linear(x, up, up_bias) * active) @ down + down_bias
    biases = {"gate_bias": gate_bias, "up_bias": up_bias, "down_bias": down_bias}
    torch.testing.assert_close(ops.sparse_mlp(x, gate, up, down, active, "silu", **biases), expected)
    # The gate is not read where its values are known.
    unread = torch.full_like(gate, float("nan"))
    found = ops.sparse_mlp(x, unread, up, down, active, "silu", gate_values=values, **biases)
    torch.testing.assert_close(found, expected)


def test_inactive_neurons_are_not_read() -> None:
    x, w, active = torch.randn(2, 8), torch.randn(40, 8), torch.zeros(40, dtype=torch.bool)
    active[3] = True
    poisoned = torch.where(active[:, None], w, float("nan"))
    found = ops.sparse_mlp(x, poisoned, poisoned, poisoned, active, "relu")
    assert torch.equal(found, ops.sparse_mlp(x, w, w, w, active, "relu")) and found.isfinite().all()


def test_tables_of_int8() -> None:
    torch.manual_seed(0)
    x, w, active = torch.randn(3, 30), torch.randn(50, 30), torch.rand(3, 50) < 0.4
    table = torch.ops.sparrow.quantize_int8(w)
    q, scale = ops.split_int8(table, 30)
    rounded = q * scale[:, None]
    expected = ops.sparse_mlp(x, rounded, rounded, rounded, active, "silu")
    found = ops.sparse_mlp(x, table, table, table, active, "silu")
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-3)


def test_unknown_activations_and_rules_are_refused() -> None:
    x, w = torch.randn(3, 8), torch.randn(5, 8)
    with pytest.raises(OptionError, match="silu, "):
        ops.sparse_mlp(x, w, w, w, None, "sigmoid")
    for rule in ("", "top-k", "top-k=0", "quantile=1", "fixed=nan", "best=3"):
        with pytest.raises(OptionError, match="rule"):
            ops.select(x, rule)


@given(
    st.lists(st.sampled_from([0, 1, 2, 5]), max_size=2),
    st.sampled_from([0, 1, 64, 100]),
    st.sampled_from(FLOATS),
)
@settings(max_examples=60, deadline=None)
def test_select(leading: list[int], n: int, dtype: torch.dtype) -> None:
    scores = torch.randn(*leading, n).to(dtype)
    numbers = scores.float()
    assert torch.equal(ops.select(scores, "fixed=0.25"), numbers > 0.25)
    for count in (1, 7):
        found = ops.select(scores, f"top-k={count}")
        assert found.shape == scores.shape and found.dtype == torch.bool
        if n:
            least = numbers.topk(min(count, n)).values[..., -1:]
            assert torch.equal(found, numbers >= least)
    if n == 100:
        tenth = ops.select(scores, "quantile=0.9")
        assert torch.equal(tenth, ops.select(scores, "top-k=10"))
        mean, deviation = numbers.mean(-1, keepdim=True), numbers.std(-1, correction=0, keepdim=True)
        sure = (numbers - mean - deviation / 2).abs() > 1e-4
        found = ops.select(scores, "mean-std=0.5")
        assert torch.equal(found[sure], (numbers > mean + deviation / 2)[sure])
    if n:
        scores[..., 0] = float("nan")
        assert not ops.select(scores, "top-k=1000")[..., 0].any()


def unpacked(blocks: Tensor, dtype: torch.dtype, head_dim: int) -> Tensor:
    """Keys or values `[batch, kv_heads, tokens, head_dim]` of blocks, by what `ops.pack_kv` says of their
    bytes."""
    batch, heads, room, size = blocks.shape
    words = math.ceil(head_dim / 32)
    out = torch.zeros(batch, heads, (room - 1) * 64, head_dim, dtype=dtype)
    for b, h, n in np.ndindex(batch, heads, room - 1):
        block = blocks[b, h, n]
        bits = np.unpackbits(block[: 256 * words].numpy(), bitorder="little")
        mask = torch.from_numpy(bits.reshape(64, words * 32)[:, :head_dim].astype(bool))
        out[b, h, n * 64 : (n + 1) * 64][mask] = block[256 * words :].clone().view(dtype)
    return out


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("head_dim", [8, 64, 80])
def test_pack_kv_drops_the_smallest(dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    keys, values = (torch.randn(2, 3, 128, head_dim).to(dtype) for _ in range(2))
    for key_sparsity, value_sparsity in [(0.5, 0.25), (0.0, 1.0)]:
        packed = ops.pack_kv(keys, values, key_sparsity, value_sparsity)
        for dense, blocks, sparsity in zip((keys, values), packed, (key_sparsity, value_sparsity)):
            found = unpacked(blocks, dtype, head_dim)
            kept = found != 0
            assert torch.equal(found[kept], dense[kept])
            for of_head, mask in zip(dense.view(-1, 64 * head_dim), kept.view(-1, 64 * head_dim)):
                dropped = int(sparsity * of_head.numel())
                assert int((~mask).sum()) == dropped
                if 0 < dropped < of_head.numel():
                    assert of_head[~mask].abs().max() <= of_head[mask].abs().min()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("head_dim", "soft_cap"), [(8, None), (64, 2.0), (80, None)])
def test_sparse_attention_decode(dtype: torch.dtype, head_dim: int, soft_cap: float | None) -> None:
    torch.manual_seed(0)
    batch, heads, kv_heads, room = 3, 6, 2, 40
    packed = ops.pack_kv(*(torch.randn(batch, kv_heads, 192, head_dim).to(dtype) for _ in range(2)), 0.4, 0.6)
    old = [unpacked(blocks, dtype, head_dim) for blocks in packed]
    tail = [torch.randn(batch, kv_heads, room, head_dim).to(dtype) for _ in range(2)]
    q = torch.randn(batch, heads, head_dim).to(dtype)
    lengths = torch.tensor([[3, 40], [0, 7], [0, 0]])
    found = ops.sparse_attention_decode(q, *packed, *tail, lengths, soft_cap=soft_cap)
    trusted = ops.sparse_attention_decode(
        q, *packed, *tail, lengths, soft_cap=soft_cap, check_invariants=False
    )
    assert torch.equal(found, trusted)
    scale = head_dim**-0.5
    for row, (blocks, count) in enumerate(lengths.tolist()):
        keys, values = (
            torch.cat([o[row, :, : blocks * 64], t[row, :, :count]], 1)
            .double()
            .repeat_interleave(heads // kv_heads, 0)
            for o, t in zip(old, tail)
        )
        tokens = keys.shape[1]
        if not tokens:
            assert not found[row].any()
            continue
        scores = torch.einsum("hd,htd->ht", q[row].double(), keys) * scale
        sizes = torch.einsum("hd,htd->ht", q[row].double().abs(), keys.abs()) * scale
        if soft_cap:
            scores = soft_cap * (scores / soft_cap).tanh()
        y = torch.einsum("ht,htd->hd", scores.softmax(-1), values)
        relative, absolute = ROUNDING[dtype]
        error = (head_dim + 16) * 2.0**-23 * sizes.amax() + (tokens + 64) * 2.0**-23
        assert_close(found[row], y, error * values.abs().amax() + relative * y.abs() + absolute)


def test_blocks_that_do_not_fit_are_refused() -> None:
    keys = torch.randn(1, 2, 128, 8)
    q, tail = torch.randn(1, 4, 8), torch.randn(1, 2, 3, 8)
    blocks, _ = ops.pack_kv(keys, keys, 0.5, 0.5)

    def call(lengths: list[list[int]], changed: Tensor = blocks) -> Tensor:
        return ops.sparse_attention_decode(q, changed, blocks, tail, tail, torch.tensor(lengths))

    call([[2, 3]])
    # The last block is room that kernels read.
    for lengths in ([[3, 0]], [[-1, 0]], [[2, 4]], [[2, -1]], [[2**62, 0]]):
        with pytest.raises(ShapeError, match="row 0"):
            call(lengths)
    one_bit_more, stray = blocks.clone(), blocks.clone()
    one_bit_more[0, 1, 1, 0] = 255 if one_bit_more[0, 1, 1, 0] != 255 else 0
    stray[0, 0, 0, 1] = 1
    for wrong in (one_bit_more, stray, blocks[..., :-1].contiguous()):
        with pytest.raises(ShapeError):
            call([[2, 3]], wrong)
    with pytest.raises(ShapeError, match="64 tokens"):
        ops.pack_kv(keys[:, :, :65], keys[:, :, :65], 0.5, 0.5)
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="key_sparsity"):
            ops.pack_kv(keys, keys, sparsity, 0.5)
