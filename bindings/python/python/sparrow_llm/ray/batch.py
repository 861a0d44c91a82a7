"""Texts for the rows of a Ray data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparrow_llm.engine import Sparrow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Generator:
    """What `map_batches` calls: continues the prompts of a batch together.

        rows.map_batches(
            Generator,
            fn_constructor_kwargs={"model": "DIR", "generation": {"max_new_tokens": 64}},
            compute=ray.data.ActorPoolStrategy(size=2), num_cpus=4, batch_size=16,
        )

    Each actor loads the model once, and computes with as many threads as it has of `num_cpus`.

    Args:
        model: A directory, a GGUF file or a hub id.
        column: The column of the prompts.
        output: The column of the texts that is added, and beside it `{output}_tokens`, their number of
            tokens, and `{output}_finish_reason`.
        load: Options of `Sparrow.from_pretrained`.
        generation: Options of `Sparrow.generate`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "prompt",
        output: str = "text",
        load: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = Sparrow.from_pretrained(model, **(load or {}))
        self.column, self.output, self.generation = column, output, dict(generation or {})

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The batch with the columns that are added.

        Raises:
            KeyError: There is no column of prompts.
        """
        import numpy as np

        results = self.model.generate([str(prompt) for prompt in batch[self.column]], **self.generation)
        added: dict[str, np.ndarray[Any, Any]] = {
            self.output: np.array([result.text for result in results], dtype=object),
            f"{self.output}_tokens": np.array([len(result.token_ids) for result in results]),
            f"{self.output}_finish_reason": np.array(
                [result.finish_reason for result in results], dtype=object
            ),
        }
        return {**batch, **added}
