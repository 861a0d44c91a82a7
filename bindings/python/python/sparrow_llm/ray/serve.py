"""A deployment of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from sparrow_llm.errors import OptionError

from .http import CompletionServer


def app(args: Mapping[str, Any]) -> Any:
    """An application for `serve.run`, or `serve run sparrow_llm.ray:app model=DIR num_replicas=2 threads=4`.

    Args:
        args: `model`, a directory, a GGUF file or a hub id that every machine has; `num_replicas`, 1 by
            default; `threads` of each replica, 1 by default, for which Ray reserves as many CPUs;
            `max_ongoing_requests` of each replica, 16 by default; and the other options of
            `Sparrow.from_pretrained`. Numbers may be texts.

    Raises:
        OptionError: There is no model, or a number is none.
    """
    options = dict(args)
    if "model" not in options:
        raise OptionError("model: missing: name a directory, a GGUF file or a hub id")
    replicas = count(options, "num_replicas", 1)
    threads = count(options, "threads", 1)
    ongoing = count(options, "max_ongoing_requests", 16)
    deployment = serve.deployment(CompletionServer).options(
        name="Sparrow",
        num_replicas=replicas,
        max_ongoing_requests=ongoing,
        ray_actor_options={"num_cpus": threads},
    )
    return deployment.bind(options.pop("model"), threads=threads, **options)


def count(options: dict[str, Any], name: str, default: int) -> int:
    """A number of at least 1, which is taken out."""
    value = options.pop(name, default)
    if not str(value).isdecimal() or int(value) < 1:
        raise OptionError(f"{name}: must be a whole number of at least 1, found {value!r}")
    return int(value)
