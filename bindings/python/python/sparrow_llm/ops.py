"""Operators on torch tensors: linear layers that read less, and what they are made of.

Tensors are used where they are, without a copy of a weight. All operators work on CPU tensors of `float32`,
`float16` or `bfloat16`, are registered as `torch.ops.sparrow.*`, and may be used under `torch.compile`,
`torch.export`, `torch.vmap` and autocast. They compute in float32 on Sparrow's own threads, see
`set_num_threads`.

Only `dense_linear` has gradients (reverse mode). The others raise `GradientError` where one is wanted: call
them under `torch.no_grad()`.

Errors: `ShapeError`, `DTypeError` and `DeviceError` of `sparrow_llm.errors` name the argument, what was
expected and what was found. Called as `torch.ops.sparrow.*`, operators raise `RuntimeError` with the same
text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch

from . import _native, errors
from ._operators.transforms import autocast
from .errors import DeviceError, DTypeError, GradientError, SparrowError

__all__ = [
    "PackedWeight",
    "dense_linear",
    "get_num_threads",
    "int8_linear",
    "pack",
    "pack_kv",
    "quantize_int8",
    "select",
    "set_num_threads",
    "sparse_attention_decode",
    "sparse_linear",
    "sparse_mlp",
    "sparse_mlp_forward",
    "split_int8",
]

Tensor = torch.Tensor

_dense_linear: Callable[..., Tensor] = torch.ops.sparrow.dense_linear.default
_int8_linear: Callable[..., Tensor] = torch.ops.sparrow.int8_linear.default
_quantize_int8: Callable[..., Tensor] = torch.ops.sparrow.quantize_int8.default
_pack: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch.ops.sparrow.pack.default
_sparse_linear: Callable[..., Tensor] = torch.ops.sparrow.sparse_linear.default
_select: Callable[..., Tensor] = torch.ops.sparrow.select.default
_sparse_mlp: Callable[..., Tensor] = torch.ops.sparrow.sparse_mlp.default
_sparse_mlp_forward: Callable[..., Tensor] = torch.ops.sparrow.sparse_mlp_forward.default

_pack_kv: Callable[..., tuple[Tensor, Tensor]] = torch.ops.sparrow.pack_kv.default
_sparse_attention_decode: Callable[..., Tensor] = torch.ops.sparrow.sparse_attention_decode.default


def get_num_threads() -> int:
    """The number of threads that operators compute on: `torch.get_num_threads()` at first use, unless it was
    set."""
    return _native.operator_threads()


def set_num_threads(threads: int) -> None:
    """Lets operators compute on so many threads, at least 1, from now on."""
    try:
        _native.set_operator_threads(threads)
    except (ValueError, OverflowError) as error:
        raise errors.OptionError(f"threads: expected at least 1, found {threads}") from error


class _DenseLinear(torch.autograd.Function):
    """`dense_linear` with gradients, which torch computes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return _dense_linear(x, w, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, w, _ = inputs
        of_x, of_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_w else None, w if of_x else None)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,) = gradients
        x, w = ctx.saved_tensors
        of_x, of_w, of_b = ctx.needs_input_grad
        rows = g.reshape(math.prod(g.shape[:-1]), g.shape[-1])
        return (
            g @ w if of_x else None,
            rows.t() @ x.reshape(rows.shape[0], x.shape[-1]) if of_w else None,
            rows.sum(0) if of_b else None,
        )


def dense_linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x · wᵀ + b, as `torch.nn.functional.linear`.

    `x` is `[..., in_features]`, any strides; `w` `[out_features, in_features]`, each row without gaps; `b`
    `[out_features]`; all of one dtype. Returns `[..., out_features]` of that dtype.

    Sums are in float32, for bfloat16 too; the error of one result is at most (in_features/8 + 16) · 2⁻²⁴ · (Σ
    |w·x| + |b|) for up to 8 rows, (in_features + 16) · 2⁻²⁴ times that for more (machines with AMX round x to
    bfloat16 then), and the rounding to the dtype.
    """
    try:
        if torch.is_grad_enabled() and (
            x.requires_grad or w.requires_grad or (b is not None and b.requires_grad)
        ):
            if torch.is_autocast_enabled("cpu"):
                x, w, b = autocast([x, w, b])
            return _DenseLinear.apply(x, w, b)  # type: ignore[no-any-return, no-untyped-call]
        return _dense_linear(x, w, b)
    except (RuntimeError, AttributeError) as error:
        refuse(error, x=x, w=w, b=b)


def int8_linear(x: Tensor, q: Tensor, scale: Tensor, b: Tensor | None = None) -> Tensor:
    """x · (q · scale)ᵀ + b, weights in 8 bits with a scale for each row.

    `x` is `[..., in_features]`; `q` `[out_features, in_features]` int8, at most 2¹⁷ columns; `scale`
    `[out_features]` or `[out_features, 1]` float32; `b` `[out_features]` of the dtype of x. Returns `[...,
    out_features]` of that dtype.

    Each row of x is rounded to 16-bit integers with the scale max |x| / 32512, the sums are exact, so the
    error is at most 2⁻¹⁶ · max |x| · Σ |q · scale| beside that of `dense_linear`. q and scale of
    `quantize_int8` are read in place; others must be contiguous, and are copied for each call.
    """
    try:
        _without_gradient("int8_linear", x, scale, b)
        return _int8_linear(x, q, scale, b)
    except (RuntimeError, AttributeError) as error:
        refuse(error, x=x, q=q, scale=scale, b=b)


def quantize_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """The weight `[out_features, in_features]` in 8 bits: `q` of that shape, int8, and `scale`
    `[out_features]`, float32.

    The largest magnitude of each row becomes 127, ties go to even: `int-quantized` of compressed-tensors. A
    row that is not finite gets the scale NaN. Both are views of one table, which `int8_linear` reads in
    place.
    """
    try:
        _without_gradient("quantize_int8", w)
        return split_int8(_quantize_int8(w), w.shape[1])
    except (RuntimeError, AttributeError) as error:
        refuse(error, w=w)


def split_int8(table: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """The codes and the scales of a table of `torch.ops.sparrow.quantize_int8`, as views."""
    return table[:, :in_features], table.view(torch.float32)[:, -1]


class PackedWeight(NamedTuple):
    """A weight `[out_features, in_features]` without its zeros: the `sparse-bitmask` format of
    compressed-tensors."""

    bitmask: Tensor
    """`[out_features, ceil(in_features / 8)]` uint8: bit i mod 8 of byte i/8, the lowest first: element i is
    stored."""
    compressed: Tensor
    """`[stored]`: the elements that are not zero, row after row."""
    row_offsets: Tensor
    """`[out_features]` int64: where a row begins in `compressed`."""
    weight_scale: Tensor | None = None
    """`[out_features, 1]` float32: of int8, what elements are multiplied by."""


def pack(w: Tensor, scale: Tensor | None = None) -> PackedWeight:
    """The weight `[out_features, in_features]` without its zeros, for `sparse_linear`.

    `w` is of floats, or int8 with its `scale` `[out_features]` or `[out_features, 1]` float32. −0.0 is no
    zero.
    """
    try:
        _without_gradient("pack", w)
        bitmask, compressed, row_offsets = _pack(w)
        scale = None if scale is None else scale.reshape(-1, 1).contiguous()
        return PackedWeight(bitmask, compressed, row_offsets, scale)
    except (RuntimeError, AttributeError) as error:
        refuse(error, w=w, scale=scale)


def sparse_linear(
    x: Tensor, packed: PackedWeight, b: Tensor | None = None, *, check_invariants: bool = True
) -> Tensor:
    """x · wᵀ + b of a weight without its zeros.

    `x` is `[..., in_features]`, of the dtype of the weight (any float, if that is int8); `b` `[out_features]`
    of the dtype of x. Returns `[..., out_features]` of that dtype, with the error of `dense_linear` or
    `int8_linear`.

    `check_invariants=False` does not count the bits of the mask, as `torch.sparse_csr_tensor` has it: for
    tensors that were accepted once and not changed since. With other tensors the process may crash.
    """
    try:
        bitmask, compressed, row_offsets, weight_scale = packed
        _without_gradient("sparse_linear", x, compressed, weight_scale, b)
        return _sparse_linear(
            x, bitmask, compressed, row_offsets, weight_scale, b, check_invariants=check_invariants
        )
    except (RuntimeError, AttributeError) as error:
        refuse(error, x=x, **packed._asdict(), b=b)


def select(scores: Tensor, rule: str) -> Tensor:
    """Which neurons are active: a mask of bools of the shape of `scores`, `[..., neurons]`, each row for
    itself.

    `rule`, as of the command `sparrow`: `fixed=T` (scores above T), `mean-std=K` (above mean + K · deviation
    of the row), `sparsity=S` (the same with the K that leaves this fraction of a normal distribution below),
    `top-k=N` (the N highest, more where scores tie), `quantile=Q` (the highest from this quantile up: 0.9
    keeps a tenth). NaN is never active. Pass magnitudes to select by magnitude. Errors: `OptionError` for a
    rule that is none.
    """
    try:
        return _select(scores.detach(), rule)
    except (RuntimeError, AttributeError) as error:
        refuse(error, scores=scores)


def sparse_mlp_forward(
    x: Tensor, concat_gate_up: Tensor, down: Tensor, active: Tensor | None, activation: str
) -> Tensor:
    """Σᵢ a(gateᵢ · x) · (upᵢ · x) · downᵢ over the active neurons i: an MLP of which only their weights are
    read.

    `x` is `[..., hidden]`; `concat_gate_up` `[2, neurons, hidden]`, rows at any distance, or `[2 · neurons,
    hidden]`, gates before ups, or without gate `[1, neurons, hidden]` or `[neurons, hidden]` (then a(upᵢ · x)
    · downᵢ); `down` `[neurons, hidden]`, a row per neuron: the transpose of a `torch.nn.Linear`'s weight. All
    of one dtype; weights may be tables of int8 from `torch.ops.sparrow.quantize_int8`. `active` is a mask of
    bools, `[neurons]` for all rows or `[..., neurons]` for each, or `None` for all neurons. `activation` is
    one of silu (swish), relu, relu2, gelu, gelu_pytorch_tanh (gelu_new, gelu_fast) and quick_gelu. Returns
    `[..., hidden]`.

    For more than 8 rows, or where nearly all neurons are active, all are computed and the others zeroed.
    Error at most (hidden/8 + neurons + 80) · 2⁻²² · Σ |h| · |down|, h with magnitudes throughout, and the
    rounding to the dtype. The idea is that of Deja Vu (arXiv 2310.17157), the signature that of
    sparse_transformers.
    """
    try:
        _without_gradient("sparse_mlp_forward", x, concat_gate_up, down)
        return _sparse_mlp_forward(x, concat_gate_up, down, active, activation)
    except (RuntimeError, AttributeError) as error:
        refuse(error, x=x, concat_gate_up=concat_gate_up, down=down, active=active)


def sparse_mlp(
    x: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    active: Tensor | None,
    activation: str,
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_values: Tensor | None = None,
) -> Tensor:
    """`sparse_mlp_forward` of projections in tensors of their own, `[neurons, hidden]` each, with biases.

    `gate_bias` and `up_bias` are `[neurons]`, `down_bias` `[hidden]`. `gate_values`, `[..., neurons]`, is
    gate · x with its bias where it is known, as after selecting by it: the gate is not read then.
    """
    try:
        _without_gradient("sparse_mlp", x, gate, up, down, gate_bias, up_bias, down_bias, gate_values)
        return _sparse_mlp(
            x,
            gate,
            up,
            down,
            active,
            activation,
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
            gate_values=gate_values,
        )
    except (RuntimeError, AttributeError) as error:
        vectors = {
            "gate_bias": gate_bias,
            "up_bias": up_bias,
            "down_bias": down_bias,
            "gate_values": gate_values,
        }
        refuse(error, x=x, gate=gate, up=up, down=down, active=active, **vectors)


def pack_kv(
    keys: Tensor, values: Tensor, key_sparsity: float, value_sparsity: float
) -> tuple[Tensor, Tensor]:
    """Keys and values pruned by magnitude and packed, for `sparse_attention_decode`.

    Both are `[batch, kv_heads, tokens, head_dim]` of one dtype, tokens a multiple of 64. Of each head's 64
    tokens the fraction `key_sparsity`, in 0..1, of the keys, and `value_sparsity` of the values, is dropped,
    the smallest magnitudes. Returns the blocks of both, uint8 `[batch, kv_heads, tokens / 64 + 1, bytes]`:
    the last block of a head holds nothing, but kernels may read it.

    A block is a bitmap `[64, ceil(head_dim / 32)]` of 32-bit words, bit i mod 32 of word i/32 set where
    element i is kept, and the elements kept, token after token. Source: SparAMX (arXiv 2502.12444).
    """
    try:
        _without_gradient("pack_kv", keys, values)
        return _pack_kv(keys, values, key_sparsity, value_sparsity)
    except (RuntimeError, AttributeError) as error:
        refuse(error, keys=keys, values=values)


def sparse_attention_decode(
    q: Tensor,
    key_blocks: Tensor,
    value_blocks: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    check_invariants: bool = True,
) -> Tensor:
    """softmax(q · keysᵀ · scale) · values of one token of each sequence, over packed tokens and dense ones
    after them.

    `q` is `[batch, heads, head_dim]`; the blocks are those of `pack_kv`, `[batch, kv_heads, room, bytes]`, of
    which `lengths[:, 0]` are in use, fewer than there is room for; `keys` and `values` `[batch, kv_heads,
    room, head_dim]` of the dtype of q, of which `lengths[:, 1]` tokens are in use; `lengths` int64 `[batch,
    2]`. Returns `[batch, heads, head_dim]`; a row that sees nothing is zero. Heads share key heads in groups
    (arXiv 2305.13245). `scale` is 1/√head_dim if it is `None`; with `soft_cap` c scores become c · tanh(score
    / c).

    Error at most (head_dim + 16) · 2⁻²³ · scale · Σ|q·k| + (tokens + 64) · 2⁻²³, relative to the largest
    |value|, and the rounding to the dtype. `check_invariants=False` does not count the bits of blocks: see
    `sparse_linear`.
    """
    try:
        _without_gradient("sparse_attention_decode", q, keys, values)
        return _sparse_attention_decode(
            q,
            key_blocks,
            value_blocks,
            keys,
            values,
            lengths,
            scale=scale,
            soft_cap=soft_cap,
            check_invariants=check_invariants,
        )
    except (RuntimeError, AttributeError) as error:
        refuse(
            error,
            q=q,
            key_blocks=key_blocks,
            value_blocks=value_blocks,
            keys=keys,
            values=values,
            lengths=lengths,
        )


def _without_gradient(operator: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise GradientError(
            f"{operator} has no gradient, but an argument requires one: call it under torch.no_grad(), or use dense_linear"
        )


def refuse(error: Exception, **arguments: Tensor | None) -> NoReturn:
    """Raises an error of the dispatcher as what it is for the caller, who gave these arguments."""
    if isinstance(error, SparrowError):
        raise error
    for name, t in arguments.items():
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise DTypeError(f"{name}: expected a torch.Tensor, found {type(t).__name__}") from None
        if isinstance(error, NotImplementedError) and (t.device.type != "cpu" or t.layout != torch.strided):
            raise DeviceError(
                f"{name}: expected a strided tensor on the CPU, found {t.layout} on {t.device}"
            ) from None
    kind, _, text = str(error).removeprefix("[").partition("] ")
    made = getattr(errors, kind, None)
    if made is None:
        raise error
    raise made(text) from None
