"""Rows of a batch through the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .cache import SessionLayer


def advance(
    layer: SessionLayer, ids: torch.Tensor, real: torch.Tensor, columns: Sequence[int]
) -> torch.Tensor:
    """Appends the tokens of a batch to the cached rows. If that fails, none is appended.

    Args:
        layer: The rows.
        ids: `[batch, new]`.
        real: `[batch, new]` of bool: which of them are tokens.
        columns: Those whose logits are wanted.

    Returns:
        `[batch, columns, vocab]` of float32; zeros where there is padding.

    Raises:
        ContextLengthError: A row becomes longer than the model's context.
        OptionError: An id is outside of the vocabulary.
    """
    before = layer.lengths
    tokens = [row[mask].tolist() for row, mask in zip(ids, real, strict=True)]
    layer.reserve([length + len(row) for length, row in zip(before, tokens, strict=True)])
    try:
        if ids.shape[1] == 1 and all(tokens):
            step = [(row, *token) for row, token in enumerate(tokens)]
            return as_tensor(layer.session.decode(step), layer)[:, None]
        return prompts(layer, tokens, real, columns, before)
    except BaseException:
        layer.restore(before)
        raise


def prompts(
    layer: SessionLayer,
    tokens: Sequence[list[int]],
    real: torch.Tensor,
    columns: Sequence[int],
    before: Sequence[int],
) -> torch.Tensor:
    """What `advance` does with rows of any number of tokens, one row after the other."""
    vocab = layer.engine.model.vocab_size
    logits = torch.zeros(len(tokens), len(columns), vocab)
    computed: dict[tuple[int, ...], int] = {}
    for row, ids in enumerate(tokens):
        if not ids:
            continue
        # Beams, and samples of one prompt, begin as rows that are alike.
        twin = computed.setdefault(tuple(ids), row) if before[row] == 0 else row
        if twin != row:
            layer.session.copy_prefix(twin, row, len(ids))
            logits[row] = logits[twin]
            continue
        first = int(real[row].int().argmax())
        wanted = {at: column - first for at, column in enumerate(columns) if bool(real[row, column])}
        earliest = min(wanted.values(), default=len(ids) - 1)
        if earliest == len(ids) - 1:
            last = as_tensor(layer.session.prefill(row, ids), layer)
        else:
            if earliest > 0:
                layer.session.prefill(row, ids[:earliest])
            last = as_tensor(layer.session.prefill_all(row, ids[earliest:]), layer)
        for at, token in wanted.items():
            logits[row, at] = last[token - earliest]
    return logits


def as_tensor(logits: bytearray, layer: SessionLayer) -> torch.Tensor:
    """`[rows, vocab]` over the memory that the engine returned."""
    return torch.frombuffer(logits, dtype=torch.float32).view(-1, layer.engine.model.vocab_size)
