"""What transformers passes to `forward`, as the tokens that each row of the batch is advanced by."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def real_tokens(
    mask: torch.Tensor | None, shape: tuple[int, int], lengths: Sequence[int], padded: int
) -> torch.Tensor:
    """Which of the new ids are tokens and not padding.

    Args:
        mask: `[batch, cached + new]`, non-zero where there is a token; none if there is no padding.
        shape: `(batch, new)` of the ids.
        lengths: Tokens that are cached of each row.
        padded: Columns of the mask that are cached.

    Returns:
        `[batch, new]` of bool.

    Raises:
        ValueError: The mask has another shape, contradicts what is cached, or has padding between tokens.
    """
    rows, new = shape
    if mask is None:
        if any(length != padded for length in lengths):
            raise ValueError(
                "the cached prompts are padded: pass the attention_mask of all tokens, cached ones too"
            )
        return torch.ones(shape, dtype=torch.bool)
    if mask.shape != (rows, padded + new):
        raise ValueError(
            f"attention_mask must have the shape {(rows, padded + new)}, for {padded} cached and {new} new "
            f"tokens, found {tuple(mask.shape)}"
        )
    real = mask.bool()
    cached = real[:, :padded].sum(dim=-1).tolist()
    if cached != list(lengths):
        raise ValueError(
            f"attention_mask says that {cached} tokens are cached of the rows, the cache has {[*lengths]}"
        )
    # A token after padding that follows a token.
    ended = (real[:, :-1] & ~real[:, 1:]).cumsum(dim=-1).bool()
    if bool((ended & real[:, 1:]).any()):
        raise ValueError(
            "attention_mask has padding between tokens: pad prompts on the left (padding_side='left')"
        )
    return real[:, padded:]


def check_ends(real: torch.Tensor, lengths: Sequence[int]) -> None:
    """Refuses rows that end with padding, whose next token cannot be predicted in the last column.

    Raises:
        ValueError: There is such a row.
    """
    for row, length in enumerate(lengths):
        if not bool(real[row, -1]) and (length > 0 or bool(real[row].any())):
            raise ValueError(
                f"row {row} of attention_mask ends with padding, which predicts nothing: pad prompts on the "
                "left (padding_side='left')"
            )


def check_positions(positions: torch.Tensor, real: torch.Tensor, lengths: Sequence[int], padded: int) -> None:
    """Refuses positions that are neither the numbers of tokens in their rows nor those of columns.

    transformers counts columns where it does not care for padding. The engine always counts tokens.

    Args:
        positions: `[batch, new]`, or `[1, new]` for all rows.
        real: What `real_tokens` gives.
        lengths: Tokens that are cached of each row.
        padded: Columns that are cached.

    Raises:
        ValueError: They are others.
    """
    tokens = real.cumsum(dim=-1) - 1 + torch.tensor(lengths)[:, None]
    columns = padded + torch.arange(real.shape[1])
    if bool(((positions != tokens) & (positions != columns) & real).any()):
        raise ValueError("position_ids are not the numbers of the tokens in their rows: leave them out")


def kept_columns(logits_to_keep: int | torch.Tensor, new: int) -> list[int]:
    """Columns of the new ids whose logits are wanted.

    Args:
        logits_to_keep: As in transformers: how many from the end, all if 0; or the columns.
        new: Columns there are.
    """
    if isinstance(logits_to_keep, torch.Tensor):
        return [int(column) % new for column in logits_to_keep.tolist()]
    return list(range(new))[-logits_to_keep:]
