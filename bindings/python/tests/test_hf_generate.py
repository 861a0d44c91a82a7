"""`SparrowForCausalLM.generate` gives what transformers' own models give, however generate is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import DEMO
from hf_models import FAMILIES, demo_model, demo_tokenizer, random_model
from sparrow_llm.hf import SparrowForCausalLM
from transformers import StoppingCriteria, StoppingCriteriaList

pytestmark = pytest.mark.transformers

PROMPTS = ["Once upon a time", "The little dog was very", "One day, Tom and his mom went to the big", "Lily"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def stock() -> Any:
    return demo_model()


@pytest.fixture(scope="module")
def model() -> SparrowForCausalLM:
    # A float32 cache, as that of the model it is compared with.
    return SparrowForCausalLM.from_pretrained(DEMO, kv_dtype="f32")


WAYS = {
    "greedy": dict(),
    "sampling": dict(do_sample=True, temperature=0.9, top_k=40, top_p=0.95),
    "beams": dict(num_beams=4),
    "beams returned": dict(num_beams=4, num_return_sequences=3),
    "sampling beams": dict(num_beams=3, do_sample=True),
    "samples": dict(do_sample=True, num_return_sequences=3),
    "penalties": dict(repetition_penalty=1.3, no_repeat_ngram_size=3),
    "static cache": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
}


@pytest.mark.parametrize("prompts", [1, 4], ids=["one", "padded batch"])
@pytest.mark.parametrize("way", WAYS)
def test_text_is_that_of_transformers(stock: Any, model: Any, tokenizer: Any, way: str, prompts: int) -> None:
    inputs = tokenizer(PROMPTS[-prompts:], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    texts = []
    for either in (stock, model):
        torch.manual_seed(3)
        texts.append(either.generate(**inputs, max_new_tokens=24, **{"do_sample": False, **WAYS[way]}))
    assert texts[1].shape[1] > inputs["input_ids"].shape[1] + 8
    assert torch.equal(texts[1], texts[0])


def test_prompts_in_chunks(stock: Any, model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    # Whole: transformers 4 gives padded rows other positions in chunks than in steps.
    whole = stock.generate(**inputs, max_new_tokens=24, do_sample=False)
    for size in (1, 3, 64):
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=24, do_sample=False, prefill_chunk_size=size), whole
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Any, family: str) -> None:
    stock = random_model(family)
    stock.save_pretrained(tmp_path)
    model = SparrowForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[0, 0, 5, 9, 23], [7, 31, 90, 4, 55]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for beams in (1, 3):
        arguments = dict(
            attention_mask=mask, max_new_tokens=16, min_new_tokens=16, do_sample=False, num_beams=beams
        )
        assert torch.equal(model.generate(ids, **arguments), stock.generate(ids, **arguments))


@pytest.mark.parametrize("target", ["stock", "model"])
@pytest.mark.parametrize("draft", ["stock", "model"])
def test_assisted(stock: Any, model: Any, tokenizer: Any, target: str, draft: str) -> None:
    either = {"stock": stock, "model": model}
    inputs = tokenizer(PROMPTS[2], return_tensors="pt").input_ids
    alone = stock.generate(inputs, max_new_tokens=32, do_sample=False)
    assisted = either[target].generate(
        inputs, max_new_tokens=32, do_sample=False, assistant_model=either[draft]
    )
    assert torch.equal(assisted, alone)


def test_a_bad_draft_changes_nothing(stock: Any, model: Any, tokenizer: Any) -> None:
    draft = random_model("Llama", vocab_size=2048)
    inputs = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    alone = stock.generate(inputs, max_new_tokens=16, do_sample=False)
    assert torch.equal(
        model.generate(inputs, max_new_tokens=16, do_sample=False, assistant_model=draft), alone
    )


def test_prompt_lookup(stock: Any, model: Any, tokenizer: Any) -> None:
    text = "Tom has a red ball. Tom has a red ball. Tom has a"
    inputs = tokenizer(text, return_tensors="pt").input_ids
    alone = stock.generate(inputs, max_new_tokens=32, do_sample=False)
    looked_up = model.generate(inputs, max_new_tokens=32, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(looked_up, alone)


def test_stop_strings(stock: Any, model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    arguments = dict(max_new_tokens=64, do_sample=False, stop_strings=["play"], tokenizer=tokenizer)
    stopped = model.generate(inputs, **arguments)
    assert torch.equal(stopped, stock.generate(inputs, **arguments))
    assert tokenizer.decode(stopped[0]).endswith("play")


def test_stopping_criteria_and_streamer(model: Any, tokenizer: Any) -> None:
    class AtTwelve(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12, dtype=torch.bool)

    class Collected(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Any) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    inputs = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    streamer = Collected()
    criteria = StoppingCriteriaList([AtTwelve()])
    ids = model.generate(
        inputs, max_new_tokens=64, do_sample=False, stopping_criteria=criteria, streamer=streamer
    )
    assert ids.shape == (1, 12)
    assert streamer.ids == ids[0].tolist() and streamer.ended


@pytest.mark.parametrize("beams", [1, 3])
def test_scores(stock: Any, model: Any, tokenizer: Any, beams: int) -> None:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    arguments = dict(
        max_new_tokens=12,
        do_sample=False,
        num_beams=beams,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ours, theirs = model.generate(inputs, **arguments), stock.generate(inputs, **arguments)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len(ours.scores) == len(theirs.scores) == 12
    for name in ("scores", "logits"):
        # Of the logits' size, 20, twice the float32 error of sums of 256 products through five layers.
        torch.testing.assert_close(
            torch.stack(getattr(ours, name)), torch.stack(getattr(theirs, name)), atol=2e-3, rtol=0
        )


def test_pipeline(stock: Any, model: Any, tokenizer: Any) -> None:
    texts = []
    for either in (stock, model):
        pipe = transformers.pipeline("text-generation", model=either, tokenizer=tokenizer, batch_size=2)
        texts.append(pipe(PROMPTS[:2], max_new_tokens=16, do_sample=False, return_full_text=False))
    assert texts[0] == texts[1]
    assert len(texts[0][0][0]["generated_text"]) > 16


def test_saved_models_load(model: Any, tmp_path: Any) -> None:
    model.generation_config.max_new_tokens = 5
    try:
        model.save_pretrained(tmp_path)
    finally:
        model.generation_config.max_new_tokens = None
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()
    loaded = SparrowForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(torch.tensor([[5, 6]]), do_sample=False).shape == (1, 7)
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == (DEMO / "model.safetensors").stat().st_size
    for name in ("state_dict", "push_to_hub"):
        with pytest.raises(NotImplementedError, match=name):
            model.save_pretrained(tmp_path, **{name: True})


@pytest.mark.parametrize("beams", [1, 3])
def test_a_real_model(beams: int) -> None:
    directory = Path(os.environ.get("SPARROW_MODELS", "")) / "smollm2"
    if not (directory / "config.json").is_file():
        pytest.skip("needs models")
    model = SparrowForCausalLM.from_pretrained(directory, kv_dtype="f32")
    stock = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([model.engine.encode("The capital of France is")])
    arguments = dict(max_new_tokens=24, do_sample=False, num_beams=beams)
    assert torch.equal(model.generate(ids, **arguments), stock.generate(ids, **arguments))
