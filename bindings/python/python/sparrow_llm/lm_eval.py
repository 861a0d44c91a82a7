"""Models of Sparrow in EleutherAI's lm-evaluation-harness.

    python -m sparrow_llm.lm_eval run --model sparrow --model_args pretrained=DIR,selector=gate --tasks …

is the harness's own command, which then knows the model `sparrow`. Versions of it that look for entry points
know it anyway; in Python, importing this module is enough.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from .engine import Sparrow
from .errors import OptionError

# Tokens that a sparse cache takes at a time, so that older ones are packed as they are in decoding.
SPARSE_CACHE_BLOCK = 64
DEFAULT_BATCH_SIZE = 8
DEFAULT_NEW_TOKENS = 256
RENAMED = {"until": "stop", "max_gen_toks": "max_new_tokens"}


class SparrowLM(TemplateLM):  # type: ignore[misc]
    """A model for the harness. What is measured is the model as it runs: prompts too are computed with its
    selector.

    Args:
        pretrained: A directory, a GGUF file or a hub id; or a `Sparrow` that is loaded.
        batch_size: Texts that are generated together; `auto` for 8. Likelihoods are computed one after the
            other.
        max_length: Tokens that predictions may look back on; the model's context by default.
        max_batch_size: Not needed.
        device: Not heeded: the harness names a GPU where its caller names nothing.
        options: Those of `Sparrow.from_pretrained`. Without any on the cache it is float32, as `sparrow eval`
            has it.
    """

    def __init__(
        self,
        pretrained: str | Sparrow,
        *,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            if not options.get("kv_dtype") and not options.get("kv_sparsity"):
                options["kv_dtype"] = "f32"
            pretrained = Sparrow.from_pretrained(pretrained, **options)
        self.engine = pretrained
        self.blocks = options.get("kv_sparsity") is not None
        self.batch_size = int(
            DEFAULT_BATCH_SIZE if batch_size is None or batch_size == "auto" else batch_size
        )
        context = self.engine.context_length
        if max_length is not None and not 1 <= max_length <= context:
            raise OptionError(
                f"max_length: must be from 1 to the context of {context} tokens, found {max_length}"
            )
        self.max_length = max_length or context
        self.session = self.engine.session()
        self.sequence = self.session.add_sequence(1)
        self.generated: list[tuple[int, float]] = []
        alone, begun = (self.engine.encode("a", add_special_tokens=special) for special in (False, True))
        self.beginning = begun[: len(begun) - len(alone)] if begun[-len(alone) :] == alone else []
        logging.getLogger(__name__).info("prompts are evaluated with selector %s", self.engine.selector)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not (ids := self.engine.eos_token_ids):
            raise OptionError("the model names no end-of-sequence token: config.json needs an eos_token_id")
        return ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What a text without context comes after: the token that the tokenizer begins texts with, or ends."""
        return self.beginning[-1] if self.beginning else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """The model's name, for the harness's caches."""
        return self.engine.name

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        tokens = sum(count for count, _ in self.generated)
        generated = sum(count * fraction for count, fraction in self.generated) / tokens if tokens else None
        return {
            "selector": self.engine.selector,
            "model_dtype": self.engine.model.dtype,
            "isa": self.engine.model.isa,
            "threads": self.engine.threads,
            "active_fraction": self.session.active_fraction(),
            "active_fraction_generated": generated,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; its beginning-of-sequence token is not added twice."""
        if add_special_tokens is None:
            begins = self.beginning and self.engine.decode(self.beginning, skip_special_tokens=False)
            add_special_tokens = not (begins and string.startswith(begins))
        return self.engine.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation.

        Raises:
            TemplateError: The model has no chat template, or it refuses the conversation.
            NotImplementedError: The prompt shall not ask for an answer.
        """
        if not add_generation_prompt:
            raise NotImplementedError(
                "answers that begin with a given text (gen_prefix) are not supported with chats"
            )
        ids, _, _ = self.engine.model.chat_prompt(json.dumps(chat_history))
        return self.engine.decode(ids, skip_special_tokens=False)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of `max_length` tokens after the prefix token."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(
                ids, self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True
        ):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # Requests that begin alike follow each other, and compute what they share once.
        order = sorted(range(len(requests)), key=lambda i: requests[i][1] + requests[i][2])
        for i in tqdm(order, desc="Running loglikelihood requests", disable=disable_tqdm):
            texts, context, continuation = requests[i]
            each = self._score(context[-max(self.max_length + 1 - len(continuation), 1) :], continuation)
            results[i] = (sum(logprob for logprob, _ in each), all(greedy for _, greedy in each))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[i])
        return results

    def _score(self, context: list[int], continuation: list[int]) -> list[tuple[float, bool]]:
        """What the model thinks of each token of a continuation."""
        if len(continuation) > self.max_length:
            raise OptionError(
                f"max_length: {self.max_length} is less than a continuation's {len(continuation)} tokens"
            )
        self.session.grow(self.sequence, len(context) + len(continuation) - 1)
        if self.blocks:
            return self._score_in_blocks(context, continuation)
        cached = self.session.tokens(self.sequence)
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(cached, context[:-1], strict=False))
        shared = sum(1 for _ in alike)
        self.session.truncate(self.sequence, shared)
        return self.session.score(self.sequence, context[shared:], continuation)

    def _score_in_blocks(self, context: list[int], continuation: list[int]) -> list[tuple[float, bool]]:
        """The same over a sparse cache, which cannot go back to what it has pruned, so nothing is shared."""
        self.session.truncate(self.sequence, 0)
        ids, scores = context + continuation, list[tuple[float, bool]]()
        for start in range(0, len(ids) - 1, SPARSE_CACHE_BLOCK):
            block = ids[start : start + SPARSE_CACHE_BLOCK + 1]
            scores += self.session.score(self.sequence, block[:1], block[1:])
        return scores[len(context) - 1 :]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to what ends them, with the options that the task gives."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        bar = tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm)
        for group in groups.values():
            options = normalize_gen_kwargs(requests[group[0]].args[1], DEFAULT_NEW_TOKENS)
            options = {RENAMED.get(name, name): value for name, value in options.items()}
            options["stop"] = [stop for stop in options["stop"] if stop]
            room = self.max_length - options["max_new_tokens"]
            if room < 1:
                new = options["max_new_tokens"]
                raise OptionError(
                    f"max_gen_toks: {new} leave no room for a prompt in {self.max_length} tokens"
                )
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in batch]
                for i, result in zip(batch, self.engine.generate(prompts, **options), strict=True):
                    texts[i] = result.text
                    self.generated.append((len(result.token_ids), result.active_fraction))
                    self.cache_hook.add_partial("generate_until", requests[i].args, result.text)
                bar.update(len(batch))
        bar.close()
        return texts


# Where entry points are read, it is there under this name already.
if "sparrow" not in model_registry:
    model_registry.register("sparrow")(SparrowLM)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
