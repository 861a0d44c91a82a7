"""The adapter of lm-evaluation-harness: its figures are those of `sparrow eval`, and of the logits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from sparrow_llm import Sparrow
from sparrow_llm.errors import OptionError
from sparrow_llm.lm_eval import SparrowLM

pytestmark = pytest.mark.lm_eval

CONTEXT = "Once upon a time, there was a little"
CHOICES = [" girl", " dog", " dog named Spot", " xylophone"]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


@pytest.mark.parametrize(
    "options",
    [{"selector": "dense"}, {"selector": "gate:quantile=0.5"}, {"selector": "dense", "kv_sparsity": 0.5}],
    ids=str,
)
def test_perplexity_is_that_of_the_binary(
    demo: Path, binary: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((demo / "sample.txt").read_text()[:1500])
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [binary, "eval", "-q", "--format", "json", "--window", "512", "-m", demo, "--text", text]
    report = json.loads(subprocess.run([*command, *arguments], check=True, capture_output=True).stdout)
    lm = SparrowLM(str(demo), **options)
    (loglikelihood,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text.read_text(),)))
    assert report["tokens"] > 300
    assert math.exp(-loglikelihood / report["tokens"]) == pytest.approx(report["perplexity"], rel=1e-6)
    assert lm.get_model_info()["active_fraction"] == pytest.approx(report["active_fraction"], abs=2e-3)


def test_windows_predict_each_token_once(demo: Path) -> None:
    engine = Sparrow.from_pretrained(demo, kv_dtype="f32")
    text = (demo / "sample.txt").read_text()[:300]
    ids = engine.encode(text, add_special_tokens=False)
    # Each window looks back on the token before it.
    windows = [([0, *ids][at : at + 16], ids[at : at + 16]) for at in range(0, len(ids), 16)]
    expected = sum(logprobs(engine, given)[range(len(told)), told].sum() for given, told in windows[:-1])
    given, told = [0, *ids][len(ids) - 16 : len(ids)], windows[-1][1]
    expected += logprobs(engine, given)[range(16 - len(told), 16), told].sum()
    lm = SparrowLM(engine, max_length=16)
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(expected, rel=1e-5)


def logprobs(engine: Sparrow, ids: list[int]) -> Any:
    logits = engine.logits(ids).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("options", [{}, {"kv_sparsity": 0.5}], ids=["shared", "sparse cache"])
def test_continuations_that_share_a_context(demo: Path, options: dict[str, Any]) -> None:
    engine = Sparrow.from_pretrained(demo, kv_dtype="f32", **options)
    pairs = [(CONTEXT, choice) for choice in CHOICES] + [("", "Once"), (CONTEXT + " girl", " named")]
    found = SparrowLM(engine, **options).loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        given = engine.encode(context)
        told = engine.encode(continuation, add_special_tokens=False)
        all_logprobs = logprobs(engine, given + told)[len(given) - 1 : -1]
        assert logprob == pytest.approx(all_logprobs[range(len(told)), told].sum(), abs=1e-4)
        assert greedy == (all_logprobs.argmax(-1).tolist() == told)
    assert any(greedy for _, greedy in found) and not all(greedy for _, greedy in found)


def test_contexts_are_cut_on_the_left(demo: Path) -> None:
    engine = Sparrow.from_pretrained(demo, kv_dtype="f32")
    lm = SparrowLM(engine, max_length=8)
    ids, told = engine.encode(CONTEXT), engine.encode(" girl", add_special_tokens=False)
    (found,) = lm.loglikelihood(requests("loglikelihood", (CONTEXT, " girl")))
    expected = logprobs(engine, ids[-(9 - len(told)) :] + told[:-1])[-len(told) :]
    assert found[0] == pytest.approx(expected[range(len(told)), told].sum(), abs=1e-4)
    with pytest.raises(OptionError, match="less than a continuation's"):
        lm.loglikelihood(requests("loglikelihood", ("a", CONTEXT)))
    # As many tokens as the context has, and one to predict.
    whole = SparrowLM(engine)
    long = (demo / "sample.txt").read_text()
    assert whole.loglikelihood(requests("loglikelihood", (long, " girl")))[0][0] < 0


def test_generate_until(demo: Path) -> None:
    engine = Sparrow.from_pretrained(demo)
    lm = SparrowLM(engine, batch_size="auto")
    prompts = [CONTEXT, "Tom had a", "The cat"]
    greedy, sampled = (
        {"until": [".", ""], "max_gen_toks": 40},
        {"do_sample": True, "temperature": 0.8, "until": "\n"},
    )
    found = lm.generate_until(requests("generate_until", *((p, greedy) for p in prompts), (CONTEXT, sampled)))
    for prompt, text in zip(prompts, found, strict=False):
        assert text == engine.generate(prompt, max_new_tokens=40, stop=".").text
        assert text and "." not in text
    assert found[3] and "\n" not in found[3]
    assert lm.get_model_info()["active_fraction_generated"] == pytest.approx(1)
    with pytest.raises(OptionError, match="no room"):
        lm.generate_until(requests("generate_until", (CONTEXT, {"max_gen_toks": 512})))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks over files, that need nothing of the hub."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = [{"text": CONTEXT + " girl", "answer": 0}, {"text": "Tom had a red ball.", "answer": 1}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    rolling = {
        "task": "own_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    metrics = {"metric_list": [{"metric": "byte_perplexity"}]}
    choice = {"task": "own_choice", "output_type": "multiple_choice", "doc_to_text": "{{text}}"}
    choices = {
        "doc_to_choice": [" was", " xylophone"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    # JSON is YAML.
    (tmp_path / "own_text.yaml").write_text(json.dumps({**common, **rolling, **metrics}))
    (tmp_path / "own_choice.yaml").write_text(json.dumps({**common, **choice, **choices}))
    return tmp_path


def test_tasks(demo: Path, tasks: Path) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"pretrained": str(demo), "selector": "gate"}
    names = ["own_text", "own_choice"]
    report = simple_evaluate(
        "sparrow", arguments, tasks=names, task_manager=manager, batch_size=2, bootstrap_iters=0
    )
    engine = Sparrow.from_pretrained(demo, selector="gate", kv_dtype="f32")
    texts = [CONTEXT + " girl", "Tom had a red ball."]
    total = sum(engine.score([0], text).logprob for text in texts)
    expected = math.exp(-total / sum(len(text) for text in texts))
    assert report["results"]["own_text"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-5)
    # The second answer was made wrong.
    assert report["results"]["own_choice"]["acc,none"] == 0.5
    assert report["config"]["selector"] == "gate" and 0 < report["config"]["active_fraction"] < 0.5


def test_command(demo: Path, tasks: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sparrow_llm.lm_eval",
        "run",
        "--model",
        "sparrow",
        "--tasks",
        "own_choice",
    ]
    arguments = ["--include_path", str(tasks), "--model_args", f"pretrained={demo},threads=1"]
    environment = {**os.environ, "HF_HOME": str(tasks / "home")}
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "own_choice" in run.stdout and "0.5" in run.stdout


def test_refusals(demo: Path) -> None:
    engine = Sparrow.from_pretrained(demo)
    with pytest.raises(OptionError, match="max_length"):
        SparrowLM(engine, max_length=513)
    with pytest.raises(NotImplementedError, match="gen_prefix"):
        SparrowLM(engine).apply_chat_template([], add_generation_prompt=False)
