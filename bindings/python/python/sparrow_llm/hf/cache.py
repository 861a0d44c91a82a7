"""The cache of `SparrowForCausalLM`: rows of a batch as sequences of a native session."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from sparrow_llm.engine import Sparrow

# transformers 5 says how many tokens to take away; before it `crop` was told how many to keep.
CROP_REMOVES = "tokens_to_remove" in inspect.signature(Cache.crop).parameters


class SessionLayer(CacheLayerMixin):  # type: ignore[misc]
    """All layers of the model as the one layer of a `Cache`: its methods are what `Cache` asks of layers.

    Row `r` of the batch is sequence `r` of the session, without its padding. `padded` counts the columns of
    the attention mask that are cached, padding included.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, engine: Sparrow) -> None:
        super().__init__()
        self.engine = engine
        self.session = engine.session()
        self.rows = 0
        self.padded = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens cached of each row, without padding."""
        return [self.session.length(row) for row in range(self.rows)]

    def resize(self, rows: int) -> None:
        """Adds empty rows, or drops the last ones."""
        while self.rows < rows:
            self.session.add_sequence(1)
            self.rows += 1
        while self.rows > rows:
            self.rows -= 1
            self.session.remove_sequence(self.rows)

    def reserve(self, lengths: Sequence[int]) -> None:
        """Gives rows room for so many tokens each, all the same, so that any can take another's place.

        Raises:
            ContextLengthError: A length is above the model's context.
        """
        needed = max(lengths, default=0)
        if self.rows and needed > self.session.capacity(self.rows - 1):
            doubled = 2 * self.session.capacity(self.rows - 1)
            capacity = max(needed, min(doubled, self.engine.model.context_length))
            for row in range(self.rows):
                self.session.grow(row, capacity)

    def restore(self, lengths: Sequence[int]) -> None:
        """Takes back what a step appended before it failed."""
        for row, length in enumerate(lengths):
            self.session.truncate(row, min(length, self.session.length(row)))

    def get_seq_length(self) -> int:
        return self.padded

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.padded + new, 0

    def get_max_length(self) -> int:
        return -1

    # The name that transformers 4 has for it.
    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.resize(0)
        self.padded = 0

    def crop(self, count: int) -> None:
        """Takes tokens away from the end of every row.

        Args:
            count: Tokens to take away, as a number below 0; or before transformers 5, from 0 on, tokens to
                keep.
        """
        if count > 0 and CROP_REMOVES:
            raise ValueError(f"crop takes the number of tokens to remove as a negative number, found {count}")
        removed = -count if count < 0 or CROP_REMOVES else max(self.padded - count, 0)
        if removed:
            for row, length in enumerate(self.lengths):
                self.session.truncate(row, max(length - removed, 0))
            self.padded = max(self.padded - removed, 0)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Makes row `i` what row `beam_idx[i]` was."""
        self.session.reorder(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Puts `repeats` copies of each row where it was."""
        self.take([row for row in range(self.rows) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows that are named, by number or by a mask."""
        self.take(torch.arange(self.rows)[indices].tolist())

    def take(self, order: Sequence[int]) -> None:
        """Makes row `i` what row `order[i]` was, for any number of rows."""
        lengths = self.lengths
        self.resize(max(self.rows, len(order)))
        self.reserve(lengths)
        unwanted = [row for row in range(self.rows) if row not in set(order)]
        self.session.reorder([*order, *unwanted[: self.rows - len(order)]])
        self.resize(len(order))

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionLayer:
        copy = SessionLayer(self.engine)
        copy.resize(self.rows)
        copy.reserve(self.lengths)
        for row in range(self.rows):
            if ids := self.session.tokens(row):
                copy.session.prefill(row, ids)
        copy.padded = self.padded
        return copy

    def lazy_initialization(self, *args: Any) -> None:
        raise TypeError(REFUSED)

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise TypeError(REFUSED)


REFUSED = "a SparrowCache holds no keys and values of other models: give it to a SparrowForCausalLM"


class SparrowCache(Cache):  # type: ignore[misc]
    """Keys and values of a `SparrowForCausalLM`, which live in the engine.

    It is what the model returns as `past_key_values` (`cache` from transformers 5.24 on) and takes back. It
    can be cropped, reordered, and its rows repeated or selected. A deep copy computes the cached tokens
    again.

    Args:
        engine: The engine of the model that fills it.
    """

    def __init__(self, engine: Sparrow) -> None:
        self.layer = SessionLayer(engine)
        super().__init__(layers=[self.layer])

    def __repr__(self) -> str:
        return f"SparrowCache({self.layer.rows} rows of {self.layer.padded} tokens)"
