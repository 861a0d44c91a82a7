"""For how many rows torch's own linear layer is faster than Sparrow's."""

from __future__ import annotations

import math

import torch

from .. import _native

# Rows, first and last, by tier and dtype; elsewhere Sparrow is faster. What was not measured goes to torch
# from 9 rows on: up to 8 both are bound by reading the weight, which Sparrow does at full bandwidth.
#
# avx2: measured by `benchmarks/operators.py` on an AMD EPYC for 1 to 512 rows: torch takes 2 to 7 times as
# long for 16 bits, 1.2 to 5 times for f32 (benchmarks/records/2026-11-30-AMD-EPYC/python).
# avx512: measured on an AMD EPYC with AVX512-BF16, [8192, 3072]: for bf16 torch takes 2.0 to 2.9 times as long
# for 1 row, 1.36 times for 8, 0.29 times for 9 and 0.4 times for 512, by an instruction that Sparrow's tier does
# not use; for f32 2.6 times for 1 row and 1.9 times for 128.
# amx: by prompts of whole models, 2.05 times for 512 rows of bf16 and 1.0 times for 128
# (benchmarks/records/2026-11-21-Intel-R-Xeon-R-Processor/peers).
_TORCH_IS_FASTER: dict[str, dict[torch.dtype, tuple[float, float]]] = {
    "scalar": {dtype: (1, math.inf) for dtype in (torch.float32, torch.float16, torch.bfloat16)},
    "avx512": {torch.bfloat16: (9, math.inf), torch.float16: (9, math.inf)},
    "amx": {torch.bfloat16: (9, 255), torch.float16: (9, math.inf), torch.float32: (9, math.inf)},
}

_HERE = _TORCH_IS_FASTER.get(_native.isa(), {})


def torch_is_faster(dtype: torch.dtype, rows: int) -> bool:
    """Whether `torch.nn.functional.linear` takes less time than `ops.dense_linear` for so many rows."""
    first, last = _HERE.get(dtype, (0, -1))
    return first <= rows <= last
