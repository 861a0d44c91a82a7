"""What a call of an operator costs beside torch's own, and for how many rows which linear layer is faster.

    python benchmarks/operators.py [--rounds 15] [--shape 4096x2048] [--rows 1,2,4,8]

Variants take turns, so that what else runs on the machine disturbs all of them; the figures are medians, and minima in
brackets. Weights rotate, so that they come from memory and not from the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

# Idle threads of OpenMP would otherwise take the cores from whoever comes next. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sparrow_llm import _native, nn, ops  # noqa: E402

CALLS = 2000
WEIGHT_BYTES = 128 << 20
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def in_turns(
    variants: dict[str, Callable[[int], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds of a call of each variant, one figure per round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for name, function in variants.items():
        function(0)
    for turn in range(rounds):
        for name, function in variants.items():
            start = time.perf_counter()
            for _ in range(calls):
                function(turn)
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def overhead(rounds: int) -> None:
    """Prints what calls on tiny tensors take, on one thread."""
    x, w, b = torch.randn(1, 8), torch.randn(8, 8), torch.randn(8)
    native = torch.ops.sparrow.dense_linear.default
    variants: dict[str, Callable[[int], object]] = {
        "torch.add": lambda _: torch.add(b, b),
        "F.linear": lambda _: F.linear(x, w, b),
        "torch.ops.sparrow.dense_linear": lambda _: native(x, w, b),
        "ops.dense_linear": lambda _: ops.dense_linear(x, w, b),
    }
    threads = torch.get_num_threads(), ops.get_num_threads()
    torch.set_num_threads(1)
    ops.set_num_threads(1)
    with torch.no_grad():
        seconds = in_turns(variants, rounds, CALLS)
    torch.set_num_threads(threads[0])
    ops.set_num_threads(threads[1])
    print("| call on 8 elements, no gradients | µs |\n|---|---|")
    for name, times in seconds.items():
        print(f"| `{name}` | {statistics.median(times) * 1e6:.2f} ({min(times) * 1e6:.2f}) |")


def rows_table(shape: tuple[int, int], rows: Sequence[int], rounds: int) -> None:
    """Prints the time of torch's linear layer divided by that of ours."""
    n, k = shape
    print(f"\n| torch ÷ ours, [{n}, {k}] | " + " | ".join(map(str, rows)) + " |\n|---|" + "---|" * len(rows))
    for name, dtype in DTYPES.items():
        count = max(2, WEIGHT_BYTES // (n * k * dtype.itemsize))
        weights = [torch.randn(n, k).to(dtype) for _ in range(count)]
        cells = []
        for m in rows:
            x = torch.randn(m, k).to(dtype)

            def torch_linear(turn: int, x: torch.Tensor = x) -> object:
                return F.linear(x, weights[turn % count])

            def dense_linear(turn: int, x: torch.Tensor = x) -> object:
                return ops.dense_linear(x, weights[(turn + 1) % count])

            seconds = in_turns({"torch": torch_linear, "ours": dense_linear}, rounds)
            median = statistics.median(seconds["torch"]) / statistics.median(seconds["ours"])
            least = min(seconds["torch"]) / min(seconds["ours"])
            cells.append(f"{median:.2f} ({least:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def layers(shape: tuple[int, int], rounds: int) -> None:
    """Prints what layers that read less take for one row, as parts of the time of torch's."""
    n, k = shape
    count = max(2, WEIGHT_BYTES // (n * k * 2))
    stock = [torch.nn.Linear(k, n, bias=False).bfloat16().requires_grad_(False) for _ in range(count)]
    modules: dict[str, list[torch.nn.Module]] = {
        "torch, bf16": list(stock),
        "`DenseLinear`": [nn.DenseLinear.from_linear(linear) for linear in stock],
        "`SparseLinear`, 50 % zeros": [nn.SparseLinear.from_linear(linear, 0.5) for linear in stock],
        "`Int8Linear`": [nn.Int8Linear.from_linear(linear) for linear in stock],
        "`SparseLinear` of int8, 50 % zeros": [
            nn.SparseLinear.from_linear(linear, 0.5, dtype=torch.int8) for linear in stock
        ],
    }
    x = torch.randn(1, k).bfloat16()
    for variants in modules.values():
        for module in variants:
            module(x)
    variants = {name: (lambda turn, m=m: m[turn % count](x)) for name, m in modules.items()}
    with torch.no_grad():
        seconds = in_turns(variants, rounds)
    base = seconds["torch, bf16"]
    print(f"\n| one row, [{n}, {k}] | torch ÷ layer |\n|---|---|")
    for name, times in seconds.items():
        ratio, least = statistics.median(base) / statistics.median(times), min(base) / min(times)
        print(f"| {name} | {ratio:.2f} ({least:.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant")
    parser.add_argument("--shape", default="4096x2048", help="out_features x in_features of the weights")
    parser.add_argument("--rows", default="1,2,4,6,8,9,12,16,32,64,128,256", help="rows of activations")
    options = parser.parse_args()
    n, k = map(int, options.shape.split("x"))
    print(f"torch {torch.__version__}, {_native.isa()}, {ops.get_num_threads()} threads\n")
    overhead(options.rounds)
    layers((n, k), options.rounds)
    rows_table((n, k), [int(m) for m in options.rows.split(",")], options.rounds)


if __name__ == "__main__":
    main()
