"""Sparrow on Ray: replicas behind one address, and batch jobs over many machines.

`serve run sparrow_llm.ray:app model=DIR num_replicas=2` serves OpenAI's completions and chat completions, as
`app` says. `Generator` is for `ray.data.Dataset.map_batches`.
"""

from .batch import Generator
from .http import CompletionServer
from .serve import app

__all__ = ["CompletionServer", "Generator", "app"]
