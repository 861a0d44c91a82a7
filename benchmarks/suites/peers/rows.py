"""The rows of the table: one line each."""

import dataclasses

from engines import LlamaCpp, Sparrow, Transformers


@dataclasses.dataclass(frozen=True)
class Row:
    """`rival` is the llama.cpp row whose weights are as wide; `options` are the engine's."""

    name: str
    rival: str
    engine: type
    options: dict = dataclasses.field(default_factory=dict)


TENTH = "forced:active=0.1,overlap=0.8"

ROWS = [
    Row("transformers bf16", "llama.cpp BF16", Transformers),
    Row("llama.cpp F16", "llama.cpp F16", LlamaCpp, {"file": "f16.gguf"}),
    Row("llama.cpp BF16", "llama.cpp BF16", LlamaCpp, {"file": "bf16.gguf"}),
    Row("llama.cpp Q8_0", "llama.cpp Q8_0", LlamaCpp, {"file": "q8_0.gguf"}),
    Row("llama.cpp Q4_0", "llama.cpp Q4_0", LlamaCpp, {"file": "q4_0.gguf"}),
    Row("Sparrow bf16, mapped file", "llama.cpp BF16", Sparrow, {"mapped": True}),
    Row("Sparrow bf16", "llama.cpp BF16", Sparrow),
    Row("Sparrow bf16, 10 % active", "llama.cpp BF16", Sparrow, {"selector": TENTH}),
    Row("Sparrow bf16, 50 % zeros", "llama.cpp BF16", Sparrow, {"zeros": 0.5}),
    Row("Sparrow int8", "llama.cpp Q8_0", Sparrow, {"dtype": "int8"}),
    Row("Sparrow int8, 10 % active", "llama.cpp Q8_0", Sparrow, {"dtype": "int8", "selector": TENTH}),
    Row("Sparrow int8, 50 % zeros", "llama.cpp Q8_0", Sparrow, {"dtype": "int8", "zeros": 0.5}),
    Row("Sparrow int4", "llama.cpp Q4_0", Sparrow, {"dtype": "int4"}),
]

# What ratios are taken of: decoding against transformers and the row's rival, prompts against the fastest of these.
TRANSFORMERS = ROWS[0].name
BEST_OF = [row.name for row in ROWS if row.engine is LlamaCpp]
