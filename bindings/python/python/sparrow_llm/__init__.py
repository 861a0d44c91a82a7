"""Sparse language-model inference on ordinary CPUs.

    >>> from sparrow_llm import Sparrow
    >>> model = Sparrow.from_pretrained("DIR")
    >>> model.generate("Once upon a time", max_new_tokens=32).text

| module | purpose |
|---|---|
| `sparrow_llm.engine` | `Sparrow`: whole models, without torch |
| `sparrow_llm.ops`, `sparrow_llm.nn` | operators on torch tensors, and modules of them |
| `sparrow_llm.hf` | models for transformers, and patching those that are loaded |
| `sparrow_llm.tools` | sparsify, prune, quantize |
| `sparrow_llm.errors` | what can go wrong |
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from ._native import __version__
from .engine import Sparrow
from .errors import SparrowError
from .tools import prune, quantize, sparsify

if TYPE_CHECKING:
    from . import hf, nn, ops
    from .results import Chunk, Completion, Evaluation, Score, Timings, TokenLogprobs

__all__ = [
    "Chunk",
    "Completion",
    "Evaluation",
    "Score",
    "Sparrow",
    "SparrowError",
    "Timings",
    "TokenLogprobs",
    "__version__",
    "errors",
    "hf",
    "nn",
    "ops",
    "prune",
    "quantize",
    "sparsify",
]

# These import torch or transformers, which the engine does not need.
_MODULES = {"hf", "nn", "ops"}
_RESULTS = {"Chunk", "Completion", "Evaluation", "Score", "Timings", "TokenLogprobs"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _RESULTS:
        return getattr(importlib.import_module(".results", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
