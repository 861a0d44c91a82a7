"""The commands of the package: what they print is what was measured."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.transformers

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "vocab_size": 100,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}


def run(module: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"sparrow_llm.{module}", *map(str, args)], capture_output=True, text=True, timeout=300
    )


def test_rows_take_turns(demo: pathlib.Path) -> None:
    ended = run(
        "benchmark", "--model", demo, "--rows", "stock,replaced,patched,drop-in,sparrow", "--num-runs", 2, "--prompt-tokens", 8, "--new-tokens", 4, "--selector", "gate",
        "--text", demo / "sample.txt", "--max-tokens", 300, "--format", "json", "--verbose",
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    rows = ["stock", "replaced", "patched", "drop-in", "sparrow"]
    assert [row["row"] for row in report["rows"]] == rows
    for row in report["rows"]:
        assert row["time_to_first_token"] > 0 and row["output_tokens_per_second"] > 0 and row["peak_memory"] > 1e6
    assert report["rows"][0]["speed_up"] == {"time_to_first_token": 1.0, "output": 1.0, "total": 1.0}
    assert 0 < report["quality"]["active_fraction"] < 0.5 and report["quality"]["kl_mean"] < 1e-6
    order = [line.split(":")[0] for line in ended.stderr.splitlines() if line.startswith("run ")]
    assert order == [f"run {n} {row}" for n in (1, 2) for row in rows]


def test_shapes_have_no_quality(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    args = ["--config", tmp_path / "config.json", "--rows", "stock,sparrow", "--num-runs", 1, "--prompt-tokens", 4]
    ended = run("benchmark", *args, "--new-tokens", 3)
    assert ended.returncode == 0, ended.stderr
    assert "quality: not measured" in ended.stdout and "Sparrow.generate" in ended.stdout
    for wrong in [["--text", "x"], ["--rows", "stock,fast"], ["--rows", "patched"], ["--new-tokens", 1]]:
        assert run("benchmark", *args, *wrong).returncode == 2


def test_a_row_that_fails_ends_the_benchmark(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ended = run("benchmark", "--model", tmp_path, "--rows", "sparrow", "--num-runs", 1)
    assert ended.returncode == 1 and "the process of row sparrow ended" in ended.stderr


def test_components(demo: pathlib.Path) -> None:
    ended = run("component_timing", "--model", demo, "--selector", "gate", "--new-tokens", 4, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    profiles = json.loads(ended.stdout)
    assert set(profiles) == {"dense", "gate"}
    assert "gate+up" in profiles["dense"] and "sparse mlp" in profiles["gate"]
