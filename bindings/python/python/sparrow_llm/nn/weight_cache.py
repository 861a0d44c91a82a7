"""The weights of active neurons, side by side, following the active set from token to token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..errors import ShapeError


@dataclass
class WeightCacheStats:
    """What `WeightCache.update_active_weights` has done since the cache was made."""

    updates: int = 0
    """Calls."""
    removals: int = 0
    """Neurons that left."""
    additions: int = 0
    """Neurons that came."""
    paired_replacements: int = 0
    """Of the additions, those that were written over a neuron that left."""
    moves: int = 0
    """Neurons that were moved into the gap of one that left without a replacement."""
    bytes_moved: int = 0
    """Bytes written into the cache, by additions and moves."""


class WeightCache:
    """The differential weight cache: copies of the active neurons of an MLP, and of these alone.

    Consecutive tokens share most of their active neurons, so only the difference is copied: a neuron that
    comes is written over one that leaves. `active_gate_up` and `active_down` are what
    `ops.sparse_mlp_forward` takes with `active=None`.

    Source: sparse_transformers.
    """

    stats: WeightCacheStats

    def __init__(
        self,
        gate: Tensor | None,
        up: Tensor,
        down: Tensor,
        mask: Tensor | None = None,
        *,
        slots: int | None = None,
    ) -> None:
        """Of the weights of an MLP, `[neurons, hidden]` each, a row per neuron, without gate `None`; with the
        neurons of `mask` `[neurons]` in it, none if that is `None`. There is room for `slots` neurons, by
        default for all."""
        for name, w in (("gate", gate), ("down", down)):
            if w is not None and w.shape != up.shape:
                raise ShapeError(f"{name}: expected the shape of up, {list(up.shape)}, found {list(w.shape)}")
        self._weights = tuple(None if w is None else w.detach() for w in (gate, up, down))
        neurons, hidden = up.shape
        parts = 2 if gate is None else 3
        slots = neurons if slots is None else min(slots, neurons)
        # Memory that is never written to is never taken.
        self._pool = torch.empty(slots, parts, hidden, dtype=up.dtype)
        self._neuron_of = torch.zeros(slots, dtype=torch.int64)
        self._length = torch.zeros((), dtype=torch.int64)
        self.stats = WeightCacheStats()
        if mask is not None:
            self.update_active_weights(mask)

    def update_active_weights(self, mask: Tensor) -> None:
        """Makes the cache hold the neurons of `mask`, bools `[neurons]`. Views handed out before show other
        neurons then."""
        gate, up, down = self._weights
        try:
            with torch.no_grad():
                counts = torch.ops.sparrow.update_pool(
                    self._pool, self._neuron_of, self._length, mask, gate, up, down
                )
        except (RuntimeError, AttributeError) as error:
            ops.refuse(error, mask=mask)
        self._length = counts[0]
        _, removals, additions, pairs, moves = counts.tolist()
        stats = self.stats
        stats.updates += 1
        stats.removals += removals
        stats.additions += additions
        stats.paired_replacements += pairs
        stats.moves += moves
        stats.bytes_moved += (additions + moves) * self._pool[:1].nbytes

    def __len__(self) -> int:
        """Neurons in the cache."""
        return int(self._length)

    @property
    def neurons(self) -> Tensor:
        """Which neuron each slot holds: int64 `[len]`, in the order of the other views."""
        return self._neuron_of[: len(self)]

    @property
    def active_gate_up(self) -> Tensor:
        """Gates and ups of the neurons, `[2, len, hidden]`, without gate `[1, len, hidden]`: a view."""
        return self._pool[: len(self), :-1].transpose(0, 1)

    @property
    def active_down(self) -> Tensor:
        """Downs of the neurons, `[len, hidden]`: a view."""
        return self._pool[: len(self), -1]
