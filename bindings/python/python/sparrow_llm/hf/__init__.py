"""Sparrow in transformers: a model that the engine runs, and sparse MLPs in models that torch runs."""

from .cache import SparrowCache
from .causal_lm import SparrowForCausalLM
from .patch import Patch, patch, unpatch

__all__ = ["Patch", "SparrowCache", "SparrowForCausalLM", "patch", "unpatch"]
