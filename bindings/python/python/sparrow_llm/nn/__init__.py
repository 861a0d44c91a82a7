"""Modules that replace `torch.nn.Linear` and the MLPs of language models, in any PyTorch model."""

from .dense import DenseLinear
from .int8 import Int8Linear
from .mlp import SparseMLP
from .replace import Replaced, replace_linear_layers
from .sparse import SparseLinear
from .weight_cache import WeightCache, WeightCacheStats

__all__ = [
    "DenseLinear",
    "Int8Linear",
    "Replaced",
    "SparseLinear",
    "SparseMLP",
    "WeightCache",
    "WeightCacheStats",
    "replace_linear_layers",
]
