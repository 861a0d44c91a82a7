"""Figures of the rows, beside those of the first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .rows import DESCRIPTIONS, Run


@dataclass(frozen=True)
class Figures:
    """Medians over the runs of a row."""

    row: str
    time_to_first_token: float
    """In seconds."""
    output_tokens_per_second: float
    """After the first token."""
    total_tokens_per_second: float
    """Of the prompt and what was generated, over the whole time."""
    peak_memory: int
    """In bytes."""

    @staticmethod
    def of(row: str, runs: list[Run], prompt_tokens: int, new_tokens: int, peak_memory: int) -> Figures:
        """The medians of runs."""
        total = prompt_tokens + new_tokens
        return Figures(
            row,
            median(run.first for run in runs),
            median((new_tokens - 1) / run.rest for run in runs),
            median(total / (run.first + run.rest) for run in runs),
            peak_memory,
        )


def as_json(figures: list[Figures], head: dict[str, Any], quality: dict[str, Any] | None) -> dict[str, Any]:
    """All of it."""
    first = figures[0]
    rows = [asdict(row) | {"speed_up": speed_up(row, first)} for row in figures]
    return head | {"rows": rows, "quality": quality}


def speed_up(row: Figures, first: Figures) -> dict[str, float]:
    """How much faster than the first row."""
    return {
        "time_to_first_token": first.time_to_first_token / row.time_to_first_token,
        "output": row.output_tokens_per_second / first.output_tokens_per_second,
        "total": row.total_tokens_per_second / first.total_tokens_per_second,
    }


def as_table(figures: list[Figures], quality: dict[str, Any] | None) -> str:
    """For people."""
    header = ["", "TTFT ms", "output tok/s", "total tok/s", "peak memory", "TTFT ×", "output ×", "total ×"]
    lines = [header]
    for row in figures:
        ratios = speed_up(row, figures[0])
        lines.append(
            [
                DESCRIPTIONS[row.row],
                f"{row.time_to_first_token * 1e3:.1f}",
                f"{row.output_tokens_per_second:.2f}",
                f"{row.total_tokens_per_second:.2f}",
                f"{row.peak_memory / 1e9:.2f} GB",
                *(f"{ratio:.2f}" for ratio in ratios.values()),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    cells = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return "\n".join([*cells, "", _sentence(quality)])


def _sentence(quality: dict[str, Any] | None) -> str:
    if quality is None:
        return "quality: not measured (random weights have none; pass --text FILE for a trained model)"
    change = quality["perplexity"] / quality["dense_perplexity"] - 1
    return (
        f"quality of selector {quality['selector']} on {quality['text']}, {quality['tokens']} tokens: perplexity "
        f"{quality['perplexity']:.3f} ({change:+.2%} of dense), KL divergence {quality['kl_mean']:.2e}, same top token "
        f"{quality['top1_agreement']:.1%}, {quality['active_fraction']:.1%} active"
    )
