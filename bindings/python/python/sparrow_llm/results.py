"""What the engine gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ._native import Outcome, Token

FinishReason = Literal["eos", "stop", "length", "context", "cancelled"]
"""Why a text ended: an end-of-sequence token, a stop string, `max_new_tokens`, a full context, or `cancel()`."""


@dataclass(frozen=True)
class TokenLogprobs:
    """A token and what the model thought of it: its own distribution, before temperature, penalties and truncation."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability."""
    top: list[tuple[int, float]]
    """The most likely tokens and their log-probabilities, most likely first."""


@dataclass(frozen=True)
class Timings:
    """How long a text took, in seconds."""

    time_to_first_token: float | None
    """From the first step that computed the prompt to the first token; None without one."""
    decode: float
    """From the first token to the last."""
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    """After the first token."""


@dataclass(frozen=True)
class Completion:
    """A text that was generated."""

    text: str
    token_ids: list[int]
    """What was generated, an end-of-sequence token included."""
    logprobs: list[TokenLogprobs] | None
    """One for each of `token_ids`, where they were asked for."""
    finish_reason: FinishReason
    stop: str | None
    """The stop string that was found."""
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were not computed again: an earlier turn of a conversation began with them."""
    timings: Timings
    active_fraction: float
    """Active ÷ all of what the selector leaves out, averaged over tokens; 1 if it leaves out nothing."""
    seed: int

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from html import escape

        t = self.timings
        figures = (
            f"{len(self.token_ids)} tokens, {t.decode_tokens_per_second:.1f} tok/s after the first; "
            f"{self.active_fraction:.0%} active; ended by {self.finish_reason}"
        )
        return f"<p style='white-space: pre-wrap'>{escape(self.text)}</p><p><small>{figures}</small></p>"


@dataclass(frozen=True)
class Chunk:
    """A piece of a text that is being generated."""

    text: str
    """Text that is settled by this token; empty while a character or a stop string may be incomplete."""
    index: int = 0
    """Which of the prompts it belongs to."""
    token_id: int | None = None
    """None of the last chunk, which has the text that was held back."""
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    """Of the last chunk."""
    completion: Completion | None = field(default=None, repr=False)
    """Of the last chunk: all of it."""


@dataclass(frozen=True)
class Score:
    """How likely a model finds a continuation."""

    logprob: float
    """Natural logarithm of its probability after the context."""
    is_greedy: bool
    """Whether each of its tokens was the most likely one."""
    token_logprobs: list[float]


@dataclass(frozen=True)
class Evaluation:
    """What a model predicts of a text, beside what a reference does."""

    tokens: int
    """Tokens predicted."""
    perplexity: float
    dense_perplexity: float
    """Of the reference."""
    kl_mean: float
    """Mean over tokens of KL(reference ‖ model) of the next-token distributions, in nats."""
    kl_p99: float
    top1_agreement: float
    """Fraction of tokens where both find the same token most likely."""
    active_fraction: float
    active_fraction_per_layer: list[float]


def token_logprobs(token: Token) -> TokenLogprobs | None:
    """What a token says of itself, if it was asked."""
    if token.logprob is None:
        return None
    return TokenLogprobs(token.id, token.logprob, token.top or [])


def completion(outcome: Outcome, seed: int, before: str = "") -> Completion:
    """The result that an outcome is; `before` is put before its text."""
    first, computed = outcome.time_to_first_token, outcome.prompt_tokens - outcome.cached_tokens
    after_first = max(outcome.new_tokens - 1, 0)
    logprobs = [token_logprobs(token) for token in outcome.tokens]
    return Completion(
        text=before + outcome.text,
        token_ids=[token.id for token in outcome.tokens],
        logprobs=[entry for entry in logprobs if entry is not None] or None,
        finish_reason=outcome.finish,  # type: ignore[arg-type]
        stop=outcome.stop,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        timings=Timings(
            time_to_first_token=first,
            decode=outcome.decode_time,
            prompt_tokens_per_second=computed / first if first else 0.0,
            decode_tokens_per_second=after_first / outcome.decode_time if outcome.decode_time else 0.0,
        ),
        active_fraction=outcome.active_fraction,
        seed=seed,
    )
