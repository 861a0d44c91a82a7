"""Modules that replace `torch.nn.Linear` and the MLPs of language models, in any PyTorch model."""

from .dense import DenseLinear
from .int8 import Int8Linear
from .replace import Replaced, replace_linear_layers
from .sparse import SparseLinear

__all__ = [
    "DenseLinear",
    "Int8Linear",
    "Replaced",
    "SparseLinear",
    "replace_linear_layers",
]
