"""Keyword arguments of generation, named as in transformers, as what the engine takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from .errors import OptionError


class Sampling(TypedDict, total=False):
    """Keyword arguments of `Sparrow.generate` and what is built on it."""

    max_new_tokens: int | None
    max_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop_strings: str | Sequence[str] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    logprobs: int | None


DEFAULT_NEW_TOKENS = 128


def request(suggested: Mapping[str, Any], options: Sampling) -> dict[str, Any]:
    """The keyword arguments of `_native.Engine.submit`, but for the prompt.

    `suggested` are values of the model's `generation_config.json`, for what is not said. Without any of `do_sample`, `temperature`,
    `top_k`, `top_p` and `min_p`, or such values, the most likely token is taken.
    """
    unknown = set(options) - set(Sampling.__annotations__)
    if unknown:
        raise TypeError(f"unknown argument {sorted(unknown)[0]!r}: use {', '.join(sorted(Sampling.__annotations__))}")
    stop = _either(options, "stop_strings", "stop")
    new_tokens = _either(options, "max_new_tokens", "max_tokens")
    seed = options.get("seed")
    made: dict[str, Any] = {
        "max_new_tokens": _count("max_new_tokens", DEFAULT_NEW_TOKENS if new_tokens is None else new_tokens),
        "stop": [stop] if isinstance(stop, str) else list(stop or ()),
        "stop_token_ids": list(options.get("stop_token_ids") or ()),
        "ignore_eos": options.get("ignore_eos", False),
        "logprobs": options.get("logprobs"),
        "presence_penalty": options.get("presence_penalty", 0.0),
        "frequency_penalty": options.get("frequency_penalty", 0.0),
        "logit_bias": list((options.get("logit_bias") or {}).items()),
        "seed": int.from_bytes(os.urandom(7), "little") if seed is None else _count("seed", seed),
    }
    values = {name: options.get(name) for name in ("temperature", "top_k", "top_p", "min_p")}
    said = {name: value for name, value in values.items() if value is not None}
    do_sample = options.get("do_sample")
    if do_sample is None:
        do_sample = bool(said or "temperature" in suggested) and said.get("temperature") != 0
    if do_sample:
        of_model = {name: suggested[name] for name in values if name in suggested}
        made |= {"temperature": 1.0} | of_model | said
        if made["temperature"] == 0:
            raise OptionError("temperature: 0 takes the most likely token: do_sample=True needs one above 0")
    penalty = options.get("repetition_penalty")
    made["repetition_penalty"] = suggested.get("repetition_penalty", 1.0) if penalty is None else penalty
    return made


def _either(options: Sampling, name: str, alias: str) -> Any:
    """The value of an option that has two names."""
    values: dict[str, Any] = dict(options)
    if values.get(name) is not None and values.get(alias) is not None:
        raise TypeError(f"{alias} is another name of {name}: give one of them")
    value = values.get(name)
    return values.get(alias) if value is None else value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise OptionError(f"{name}: must be a whole number of at least 0, found {value!r}")
    return value
