#!/usr/bin/env python3
"""Write blocks.json: random blocks of every format with the numbers that the `gguf` package (0.19) makes of them, as hexadecimal
little-endian bytes. Needs gguf and numpy."""
import json
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where the binary16 scales of a block are: random bytes there would be infinite or no numbers now and then.
SCALES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2],
              Q6_K=[208], IQ4_NL=[0], IQ4_XS=[0])

random = np.random.default_rng(7)
cases = {}
for name, scales in SCALES.items():
    kind = GGMLQuantizationType[name]
    elements, size = GGML_QUANT_SIZES[kind]
    count = 2 if elements == 256 else 4
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        blocks[:, at:at + 2] = random.normal(0, 0.1, count).astype(np.float16).view(np.uint8).reshape(count, 2)
    numbers = dequantize(blocks.reshape(1, -1), kind).astype("<f4")
    cases[name] = dict(elements=elements, blocks=[b.tobytes().hex() for b in blocks], numbers=numbers.tobytes().hex())
(Path(__file__).parent / "blocks.json").write_text(json.dumps(cases, indent=1) + "\n")
