"""The native operators as torch has them: what they are registered as, and what torch wants to know of them
beside."""

from __future__ import annotations

import os

import torch

from .. import _native

_native.register_operators(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))

# Both name registered operators.
from . import fakes, transforms  # noqa: E402

__all__ = ["fakes", "transforms"]
