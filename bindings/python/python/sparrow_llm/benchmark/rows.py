"""What is compared: each row loads a model in a process of its own, and generates when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a row does."""

    row: str
    model: str
    selector: str | None
    threads: int
    new_tokens: int


@dataclass(frozen=True)
class Run:
    """One generation, in seconds."""

    first: float
    """From the call to the first token."""
    rest: float
    """From there to the last token."""


Generate = Callable[[list[int]], Run]

DESCRIPTIONS = {
    "stock": "transformers, bf16, with its cache",
    "replaced": "the same, linear layers replaced by nn.DenseLinear",
    "patched": "the same, MLPs replaced by hf.patch",
    "drop-in": "transformers' generate on hf.SparrowForCausalLM",
    "sparrow": "Sparrow.generate",
}


def load(job: Job) -> Generate:
    """The model of a row, ready to generate."""
    if job.row == "sparrow":
        return _sparrow(job)
    return _transformers(job)


def _sparrow(job: Job) -> Generate:
    from .. import Sparrow

    model = Sparrow.from_pretrained(job.model, selector=job.selector, threads=job.threads, progress=False)

    def generate(ids: list[int]) -> Run:
        times = [time.perf_counter()]
        for chunk in model.stream(ids, max_new_tokens=job.new_tokens, ignore_eos=True):
            if chunk.token_id is not None:
                times.append(time.perf_counter())
        return Run(times[1] - times[0], times[-1] - times[1])

    return generate


class _Times:
    """A streamer that keeps the time of every token; transformers hands it the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _transformers(job: Job) -> Generate:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    model = _model(job)
    model.generation_config.eos_token_id = None

    def generate(ids: list[int]) -> Run:
        streamer = _Times()
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                torch.tensor([ids]),
                max_new_tokens=job.new_tokens,
                min_new_tokens=job.new_tokens,
                do_sample=False,
                streamer=streamer,
                pad_token_id=0,
            )
        first = streamer.times[1]
        return Run(first - began, streamer.times[-1] - first)

    return generate


def _model(job: Job) -> Any:
    """What the row generates with."""
    import torch

    if job.row == "drop-in":
        from ..hf import SparrowForCausalLM

        return SparrowForCausalLM.from_pretrained(job.model, selector=job.selector, threads=job.threads)
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()
    if job.row == "replaced":
        from ..nn import replace_linear_layers

        replace_linear_layers(model, kind="dense")
    elif job.row == "patched":
        from ..hf import patch

        assert job.selector, "the command asks for one"
        patch(model, selector=job.selector)
    return model
