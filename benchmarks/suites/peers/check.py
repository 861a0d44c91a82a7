"""Whether every engine computes the same model: logits after one prompt, against Sparrow's."""

import numpy

from engines import Sparrow, prompt

# Long enough for the low frequencies of RoPE to tell; ids that every vocabulary has.
PROMPT = prompt(512, 32000)

# Largest ‖logits − Sparrow's‖ ÷ ‖Sparrow's‖. Sparrow multiplies in f32 here (no AMX); what is left is the peer's own
# rounding: f16 or bf16 activations, quantised weights. With random weights a wrong file stays close: without the RoPE
# factors F16 is 0.0066 off at the llama-3.2-1b shape (right: 0.0025), with q and k in the wrong order 0.08.
LIMITS = {
    "transformers bf16": 0.02,
    "llama.cpp F16": 0.005,
    "llama.cpp BF16": 0.02,
    "llama.cpp Q8_0": 0.05,
    "llama.cpp Q4_0": 0.5,
}


def logits(row, settings):
    return numpy.array(row.engine(settings, **row.options).feed(PROMPT))


def run(rows, settings, in_new_process):
    """Prints a line per engine; true if all are within their limits."""
    want = Sparrow(settings, mapped=True).logits(PROMPT)
    passed = True
    for row in rows:
        if row.name not in LIMITS:
            continue
        got = in_new_process(logits, row, settings)
        error = numpy.linalg.norm(got - want) / numpy.linalg.norm(want)
        passed &= bool(error <= LIMITS[row.name])
        same = "the same" if got.argmax() == want.argmax() else "another"
        print(f"{row.name}: error {error:.4f} (limit {LIMITS[row.name]}), {same} most likely token", flush=True)
    return passed
