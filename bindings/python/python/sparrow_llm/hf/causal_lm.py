"""A transformers model whose forward pass is the engine's."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import Self

from sparrow_llm.engine import Sparrow

from .advance import advance
from .cache import SparrowCache
from .inputs import check_ends, check_positions, kept_columns, real_tokens

# transformers 5.24 calls past_key_values cache.
PREPARED = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in PREPARED else "past_key_values"
IGNORED_LABEL = -100


class SparrowForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A model of transformers that the engine runs: `generate` with all that it can, and `pipeline`.

    It keeps its own cache, and takes prompts that are padded on the left. It has no parameters of torch, no
    hidden states and attentions to hand out, and cannot be trained; `hf.patch` makes a model of transformers
    itself sparse.

    Args:
        engine: What runs it. It may have other uses at the same time.
    """

    main_input_name = "input_ids"

    def __init__(self, engine: Sparrow) -> None:
        super().__init__(model_config(engine))
        self.engine = engine
        self.post_init()
        self.generation_config = generation_config(engine, self.config)
        self.eval()

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], **options: Any) -> Self:
        """Loads a model.

        Args:
            path_or_id: A directory, a GGUF file, or a hub id.
            options: Those of `Sparrow.from_pretrained`: `dtype`, `selector`, `weights`, `kv_dtype`, `threads`
                and so on.

        Raises:
            SparrowError: As `Sparrow.from_pretrained`.
        """
        return cls(Sparrow.from_pretrained(path_or_id, **options))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Copies the files of the model, and writes its `generation_config`.

        Args:
            save_directory: Made if there is none.
            kwargs: How transformers would write weights (`safe_serialization`, `max_shard_size`), which stay
                as they are.

        Raises:
            NotImplementedError: `state_dict` or `push_to_hub` is given.
        """
        for name in ("state_dict", "push_to_hub"):
            if kwargs.get(name):
                raise NotImplementedError(f"save_pretrained copies the model's files and takes no {name}")
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for file in model_files(self.engine):
            if file.parent.resolve() != target.resolve():
                shutil.copy2(file, target / file.name)
        self.generation_config.save_pretrained(target)

    @property
    def device(self) -> torch.device:
        """Where ids and logits are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits; that of the weights is `engine.model.dtype`."""
        return torch.float32

    def get_input_embeddings(self) -> Any:
        """None: the weights are not torch's."""
        return None

    def get_output_embeddings(self) -> Any:
        """None: the weights are not torch's."""
        return None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # Assisted decoding and chunked prompts want it before the first forward pass.
        if generation_config.use_cache is not False and not isinstance(model_kwargs.get(CACHE), SparrowCache):
            model_kwargs[CACHE] = self._own_cache(model_kwargs.get(CACHE))

    def _own_cache(self, given: Cache | None) -> SparrowCache:
        """The cache that was given, or a new one in place of one that is empty."""
        if given is None:
            return SparrowCache(self.engine)
        if not isinstance(given, SparrowCache):
            if given.get_seq_length() > 0:
                found = type(given).__name__
                raise TypeError(
                    f"{CACHE} is a {found} of another model: only a SparrowCache can be continued"
                )
            return SparrowCache(self.engine)
        if given.layer.engine is not self.engine:
            raise ValueError(f"{CACHE} was filled by another SparrowForCausalLM")
        return given

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[torch.Tensor, ...]:
        """Logits of a batch.

        Args:
            input_ids: `[batch, new]`: the tokens that are not cached.
            attention_mask: `[batch, cached + new]`, 0 where there is padding: on the left, or on the right
                where all logits are wanted.
            position_ids: Checked: the numbers of the tokens in their rows.
            cache: What a former call returned.
            past_key_values: The same, by its name before transformers 5.24.
            inputs_embeds: Refused.
            labels: `[batch, new]`, -100 where no loss is wanted. What padding would predict is not counted.
            use_cache: Whether to return the cache.
            cache_position: Not needed.
            logits_to_keep: How many columns from the end, 0 for all; or which.
            return_dict: Whether to return an object, or a tuple.
            kwargs: `num_items_in_batch`, which losses are divided by; others are ignored, as transformers'
                own models do.

        Returns:
            `loss` if there are labels, `logits` `[batch, columns, vocab]` of float32, 0 at padding, and the
            cache.

        Raises:
            ValueError: Arguments contradict each other or the cache, or tokens do not fit the context.
        """
        if refused := [name for name in ("output_attentions", "output_hidden_states") if kwargs.get(name)]:
            raise ValueError(f"SparrowForCausalLM has no {refused[0]}: the engine hands out logits only")
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(
                "SparrowForCausalLM takes input_ids and no inputs_embeds: the weights are not torch's"
            )
        own = self._own_cache(cache if cache is not None else past_key_values)
        rows, new = input_ids.shape
        if own.layer.padded == 0:
            own.layer.resize(rows)
        if own.layer.rows != rows:
            raise ValueError(f"input_ids has {rows} rows, the cache {own.layer.rows}")
        lengths = own.layer.lengths
        real = real_tokens(attention_mask, (rows, new), lengths, own.layer.padded)
        if position_ids is not None:
            check_positions(position_ids, real, lengths, own.layer.padded)
        columns = kept_columns(logits_to_keep, new)
        if len(columns) < new:
            check_ends(real, lengths)
        logits = advance(own.layer, input_ids, real, columns)
        own.layer.padded += new
        loss = None if labels is None else self._loss(logits, labels, real, kwargs.get("num_items_in_batch"))
        use_cache = self.config.use_cache if use_cache is None else use_cache
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: own if use_cache else None})
        return output.to_tuple() if return_dict is False else output

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, items: Any
    ) -> torch.Tensor:
        if labels.shape != logits.shape[:2]:
            expected, found = tuple(logits.shape[:2]), tuple(labels.shape)
            raise ValueError(f"labels must have the shape {expected} of the logits, found {found}")
        labels = labels.clone()
        labels[:, 1:][~real[:, :-1]] = IGNORED_LABEL
        loss: torch.Tensor = self.loss_function(
            logits, labels, vocab_size=logits.shape[-1], num_items_in_batch=items
        )
        return loss


def model_files(engine: Sparrow) -> list[Path]:
    """The files of a model: all of its directory, or a GGUF file."""
    path = engine.model.directory
    if path is None:
        raise ValueError("the model was not read from files: there is nothing to copy")
    return [Path(path)] if os.path.isfile(path) else [file for file in Path(path).iterdir() if file.is_file()]


def model_config(engine: Sparrow) -> PretrainedConfig:
    """What transformers calls the model's configuration: of its directory, or as a GGUF file has it."""
    path = engine.model.directory
    if path is not None and os.path.isdir(path):
        return AutoConfig.from_pretrained(path)
    return AutoConfig.for_model(**engine.config)


def generation_config(engine: Sparrow, config: PretrainedConfig) -> GenerationConfig:
    """What the model's files say of generation."""
    path = engine.model.directory
    if path is not None and os.path.isfile(os.path.join(path, "generation_config.json")):
        return GenerationConfig.from_pretrained(path)
    return GenerationConfig.from_model_config(config)
