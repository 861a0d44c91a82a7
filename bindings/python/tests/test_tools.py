"""Making models: what the commands write."""

from __future__ import annotations

import json
import pathlib

import pytest

from sparrow_llm import Sparrow, errors, prune, quantize, sparsify

SMALL = {"max_tokens": 2000, "window": 64, "threads": 2}


@pytest.fixture
def text(demo: pathlib.Path) -> pathlib.Path:
    return demo / "sample.txt"


def test_sparsify(demo: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stages: list[str] = []
    out = tmp_path / "sparse"
    record = sparsify(
        demo, out, selector="gate", text=text, target_active=0.5, progress=lambda s, d, t: stages.append(s), **SMALL
    )
    assert record == json.loads((out / "sparrow.json").read_text())
    assert {"observing activations", "writing weights"} <= set(stages)
    model = Sparrow.from_pretrained(out)
    assert model.selector == "gate" and model.generate("Once", max_new_tokens=4).active_fraction < 0.6
    assert model.perplexity(text.read_text(), max_tokens=500).kl_mean >= 0


def test_prune(demo: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    record = prune(demo, tmp_path / "pruned", method="wanda", sparsity=0.5, text=text, **SMALL)
    assert record["quality"]["perplexity"] > 0
    pruned = Sparrow.from_pretrained(tmp_path / "pruned")
    evaluation = pruned.perplexity(text.read_text(), max_tokens=500, reference=Sparrow.from_pretrained(demo))
    assert evaluation.kl_mean > 0 and evaluation.perplexity != evaluation.dense_perplexity


def test_quantize(demo: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    quantize(demo, tmp_path / "int4", method="rtn", text=text, **SMALL)
    assert Sparrow.from_pretrained(tmp_path / "int4").model.dtype.startswith("int4")
    quantize(demo, tmp_path / "rows", method="gptq", along="output", text=text, **SMALL)
    sparsify(tmp_path / "rows", tmp_path / "sparse", selector="input", target_active=0.75, text=text, **SMALL)
    assert Sparrow.from_pretrained(tmp_path / "sparse").generate("Once upon a time", max_new_tokens=4).text


def test_what_progress_raises_ends_the_work(demo: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def ends(stage: str, done: int, total: int) -> None:
        raise TimeoutError(stage)

    for work in [
        lambda out: sparsify(demo, out, selector="gate", text=text, progress=ends, **SMALL),
        lambda out: prune(demo, out, method="wanda", sparsity=0.5, text=text, progress=ends, **SMALL),
        lambda out: quantize(demo, out, method="rtn", text=text, progress=ends, **SMALL),
    ]:
        with pytest.raises(TimeoutError):
            work(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_options_that_cannot_be(demo: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    for call, message in [
        (lambda: sparsify(demo, out, selector="gate", text=text, recall=0.9, target_kl=0.1), "target_kl: cannot be given"),
        (lambda: sparsify(demo, out, selector="lowrank", text=text, rank=1.5), "rank"),
        (lambda: sparsify(demo, out, selector="magic", text=text), "selector"),
        (lambda: prune(demo, out, method="wanda", text=text), "sparsity"),
        (lambda: prune(demo, out, method="luck", sparsity=0.5, text=text), "method"),
        (lambda: quantize(demo, out, method="rtn", bits=5, text=text), "bits"),
        (lambda: quantize(demo, out, method="rtn", along="rows", text=text), "along"),
    ]:
        with pytest.raises(errors.OptionError, match=message):
            call()
    with pytest.raises(errors.FileError, match="missing.txt"):
        sparsify(demo, out, selector="gate", text=tmp_path / "missing.txt")
    assert not out.exists()
