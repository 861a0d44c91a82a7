"""What makes models: a directory in, a directory out, as the commands of the same names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from . import _native
from .engine import _default_threads
from .progress import Progress, Reporting

Path = str | os.PathLike[str]


def sparsify(
    model: Path,
    output: Path,
    *,
    selector: str,
    text: Path,
    recall: float | None = None,
    target_active: float | None = None,
    target_ppl: float | None = None,
    target_kl: float | None = None,
    rank: float = 0.04,
    look_ahead: bool = False,
    epochs: int = 0,
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """Calibrates a selector on a text and writes a directory that runs sparse. At most one target is given.

    Args:
        model: a Hugging Face directory, a GGUF file, or a hub id.
        output: the directory to write; it must not exist.
        selector: `gate`, `lowrank`, `sign`, `input` or `skip`.
        text: a file in UTF-8; the last tenth of its tokens is held out and measures the quality.
        recall: find this fraction of the truly active neurons.
        target_active: keep this fraction of the neurons, or of the layers' weights.
        target_ppl: keep as little as lets perplexity rise by at most this fraction: 0.01 is one per cent.
        target_kl: keep as little as leaves the mean KL divergence from dense at most this, in nats.
        rank: of low-rank predictors, a number, or a fraction of the intermediate size below 1.
        look_ahead: predict from the attention's input, a block ahead.
        epochs: train predictors for so many passes over the text, and keep that if it helps.
        window: tokens of a window.
        bos: windows begin with the beginning-of-sequence token.
        max_tokens: of the text.
        threads: otherwise as `Sparrow.from_pretrained` has it.
        progress: called as `progress(stage, done, total)`; True and False show and hide a line on stderr. What it raises ends the
            work, and nothing is left behind.

    Returns:
        `sparrow.json`: thresholds, and the quality that was measured on held-out text.
    """
    return _made(
        _native.sparsify,
        model,
        output,
        text,
        threads,
        progress,
        selector=selector,
        recall=recall,
        target_active=target_active,
        target_ppl=target_ppl,
        target_kl=target_kl,
        rank=rank,
        look_ahead=look_ahead,
        epochs=epochs,
        window=window,
        bos=bos,
        max_tokens=max_tokens,
    )


def prune(
    model: Path,
    output: Path,
    *,
    method: str,
    text: Path,
    sparsity: float | None = None,
    pattern: str | None = None,
    allocation: str = "uniform",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """Sets the weights that matter least to zero, and writes a directory like the one it came from. Interrupted, it goes on when
    called again.

    Args:
        method: `magnitude`, `wanda` (arXiv 2306.11695) or `sparsegpt` (arXiv 2301.00774).
        sparsity: zeros this fraction, 0.2 to 0.8; or
        pattern: keeps N of every M weights along the input, as in `2:4`.
        allocation: `uniform`, or `owl` (arXiv 2310.05175).
        include: patterns of names of tensors; none is every matrix of the decoder layers.
        exclude: patterns of those to leave as they are.

    Others, and what is returned, are as in `sparsify`.
    """
    return _made(
        _native.prune,
        model,
        output,
        text,
        threads,
        progress,
        method=method,
        sparsity=sparsity,
        pattern=pattern,
        allocation=allocation,
        include=include,
        exclude=exclude,
        window=window,
        bos=bos,
        max_tokens=max_tokens,
    )


def quantize(
    model: Path,
    output: Path,
    *,
    method: str,
    text: Path,
    bits: int = 4,
    average_bits: float | None = None,
    group: int | None = None,
    along: str = "input",
    zero_points: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    window: int = 256,
    bos: bool = True,
    max_tokens: int = 65_536,
    threads: int | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, Any]:
    """Rounds weights to 4 or 8 bits, and writes them as compressed-tensors, which transformers and vLLM load too.

    Args:
        method: `rtn`, `gptq` (arXiv 2210.17323) or `awq` (arXiv 2306.00978).
        bits: of a weight, 4 or 8.
        average_bits: give 8 bits to the matrices where 4 cost most, as far as weights take no more than this on average.
        group: weights that share a scale, 32, 64 or 128; by default 32 for 4 bits, and rows for 8.
        along: where these lie. "output" makes rows of inputs, which the selector "input" can leave out and only Sparrow reads.
        zero_points: groups have a zero point of their own.

    Others, and what is returned, are as in `prune`.
    """
    return _made(
        _native.quantize,
        model,
        output,
        text,
        threads,
        progress,
        method=method,
        bits=bits,
        average_bits=average_bits,
        group=group,
        along=along,
        zero_points=zero_points,
        include=include,
        exclude=exclude,
        window=window,
        bos=bos,
        max_tokens=max_tokens,
    )


def _made(
    make: Callable[..., str],
    model: Path,
    output: Path,
    text: Path,
    threads: int | None,
    progress: Progress | bool | None,
    **options: Any,
) -> dict[str, Any]:
    """The record of what was made."""
    with Reporting(progress) as report:
        record: dict[str, Any] = json.loads(
            make(
                os.fspath(model),
                os.fspath(output),
                text=os.fspath(text),
                threads=_default_threads() if threads is None else threads,
                progress=report,
                **options,
            )
        )
    return record
