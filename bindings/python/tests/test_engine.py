"""Whole models: generation, conversations, measuring."""

from __future__ import annotations

import asyncio
import json
import pathlib
import pickle
import subprocess

import numpy as np
import pytest

from sparrow_llm import Chunk, Completion, Sparrow

PROMPTS = ["Once upon a time", "The dog"]


@pytest.fixture(scope="module")
def model(demo: pathlib.Path) -> Sparrow:
    return Sparrow.from_pretrained(demo, threads=2)


def said(binary: pathlib.Path, *args: str) -> str:
    """What the command prints."""
    run = subprocess.run([binary, "-q", *args], capture_output=True, text=True, check=True)
    return run.stdout


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 7}, {"selector": "gate"}])
def test_text_is_that_of_the_command(binary: pathlib.Path, demo: pathlib.Path, sampling: dict[str, object]) -> None:
    selector = sampling.pop("selector", None)
    model = Sparrow.from_pretrained(demo, threads=2, selector=selector)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]
    options += [f"--selector={selector}"] if selector else []
    for prompt in PROMPTS:
        text = model.generate(prompt, max_new_tokens=48, **sampling).text
        expected = said(binary, "generate", "-m", str(demo), "-t", "2", "-n", "48", "-p", prompt, *options)
        assert text + "\n" == expected


def test_perplexity_is_that_of_the_command(binary: pathlib.Path, demo: pathlib.Path) -> None:
    text = demo / "sample.txt"
    for options, args in [({}, []), ({"dtype": "int8"}, ["--dtype", "int8"]), ({"selector": "gate:sparsity=0.5"}, ["-s", "gate:sparsity=0.5"])]:
        model = Sparrow.from_pretrained(demo, threads=2, **options)
        found = model.perplexity(text.read_text(), window=64, max_tokens=500)
        printed = said(
            binary, "eval", "-m", str(demo), "-t", "2", "--window=64", "--max-tokens=500", "--format=json",
            "--text", str(text), *(args or ["-s", "dense"]),
        )
        expected = json.loads(printed)
        for name in ["tokens", "perplexity", "dense_perplexity", "kl_mean", "top1_agreement", "active_fraction"]:
            assert getattr(found, name) == expected[name], name


def test_a_list_gives_a_list_of_what_each_gives_alone(model: Sparrow) -> None:
    alone = [model.generate(prompt, max_new_tokens=12) for prompt in PROMPTS]
    together = model.generate(PROMPTS, max_new_tokens=12)
    assert [c.text for c in together] == [c.text for c in alone]
    ids = [model.encode(prompt) for prompt in PROMPTS]
    assert [c.token_ids for c in model.generate(ids, max_new_tokens=12)] == [c.token_ids for c in alone]
    assert model.generate(ids[0], max_new_tokens=12).text == alone[0].text
    assert model.generate(np.array(ids[0]), max_new_tokens=12).text == alone[0].text
    # More than there are slots.
    many = model.generate([PROMPTS[0]] * 20, max_new_tokens=4)
    assert len({c.text for c in many}) == 1 and len(many) == 20


def test_names_of_other_libraries(model: Sparrow) -> None:
    text = model.generate(PROMPTS[0], max_new_tokens=16).text
    assert model(PROMPTS[0], max_tokens=16).text == text
    stopped = model.generate(PROMPTS[0], max_tokens=16, stop="girl")
    assert stopped.text == text[: text.index("girl")] and stopped.finish_reason == "stop" and stopped.stop == "girl"
    assert model.generate(PROMPTS[0], max_new_tokens=16, stop_strings=["zebra", "girl"]).text == stopped.text
    for wrong in [{"stop": "a", "stop_strings": "b"}, {"max_tokens": 1, "max_new_tokens": 1}]:
        with pytest.raises(TypeError, match="is another name of"):
            model.generate(PROMPTS[0], **wrong)
    with pytest.raises(TypeError, match="unknown argument 'max_length'"):
        model.generate(PROMPTS[0], max_length=3)  # type: ignore[call-arg]


def test_sampling(model: Sparrow) -> None:
    draw = lambda **options: model.generate(PROMPTS[0], max_new_tokens=24, **options)  # noqa: E731
    greedy = draw().text
    assert draw(do_sample=False, temperature=2.0).text == greedy
    assert draw(temperature=0).text == greedy
    hot = draw(temperature=1.5, seed=3)
    assert hot.text != greedy and draw(temperature=1.5, seed=3).text == hot.text
    assert draw(do_sample=True, temperature=1.5, seed=4).text != hot.text
    unseeded = draw(temperature=1.5)
    assert draw(temperature=1.5, seed=unseeded.seed).text == unseeded.text
    several = draw(temperature=1.5, seed=3, num_return_sequences=3)
    assert [c.seed for c in several] == [3, 4, 5] and several[0].text == hot.text
    assert len({c.text for c in several}) == 3
    # -inf forbids the token that was best.
    best = draw().token_ids[0]
    assert draw(logit_bias={best: float("-inf")}).token_ids[0] != best


def test_results_say_what_happened(model: Sparrow) -> None:
    ids = model.encode(PROMPTS[0])
    result = model.generate(PROMPTS[0], max_new_tokens=8, logprobs=3, echo=True)
    assert result.text.startswith(PROMPTS[0]) and result.finish_reason == "length"
    assert result.prompt_tokens == len(ids) and len(result.token_ids) == 8
    assert result.logprobs and [entry.token_id for entry in result.logprobs] == result.token_ids
    logits = model.logits(ids + result.token_ids[:-1]).astype(np.float64)[len(ids) - 1 :]
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    for entry, row in zip(result.logprobs, logprobs, strict=True):
        assert len(entry.top) == 3 and entry.top[0][0] == entry.token_id
        assert abs(entry.logprob - row[entry.token_id]) < 1e-4
    assert result.timings.decode > 0 and result.timings.decode_tokens_per_second > 0
    assert result.active_fraction == 1.0
    assert "8 tokens" in result._repr_html_()
    assert "LlamaForCausalLM" in model._repr_html_() and "selector dense" in repr(model)


def test_sparse_models_say_how_sparse(demo: pathlib.Path) -> None:
    result = Sparrow.from_pretrained(demo, selector="gate").generate(PROMPTS[0], max_new_tokens=8)
    assert 0.0 < result.active_fraction < 0.5


def test_streams_give_the_same_text(model: Sparrow) -> None:
    whole = model.generate(PROMPTS[0], max_new_tokens=24)
    chunks = list(model.stream(PROMPTS[0], max_new_tokens=24))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [c.token_id for c in chunks[:-1]] == whole.token_ids
    assert chunks[-1].finish_reason == "length" and isinstance(chunks[-1].completion, Completion)
    assert chunks[-1].completion.text == whole.text
    # Two at once, and one that is given up.
    first, second = model.stream(PROMPTS[0], max_new_tokens=24), model.stream(PROMPTS[1], max_new_tokens=24)
    texts = ["", ""]
    for a, b in zip(first, second, strict=False):
        texts[0] += a.text
        texts[1] += b.text
    assert texts[0].strip() and whole.text.startswith(texts[0][:40])
    with model.stream(PROMPTS[0], max_new_tokens=100_000) as stream:
        next(stream)
    assert list(stream) == []


def test_callbacks_hear_of_every_token(model: Sparrow) -> None:
    chunks: list[Chunk] = []
    results = model.generate(PROMPTS, max_new_tokens=6, callback=chunks.append)
    for i, result in enumerate(results):
        own = [chunk for chunk in chunks if chunk.index == i]
        assert [chunk.token_id for chunk in own] == [*result.token_ids, None]
        assert "".join(chunk.text for chunk in own) == result.text

    def fails(chunk: Chunk) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate(PROMPTS[0], callback=fails)
    assert model.generate(PROMPTS[0], max_new_tokens=6).text == results[0].text


def test_async_streams(model: Sparrow) -> None:
    async def text(prompt: str) -> str:
        return "".join([chunk.text async for chunk in model.astream(prompt, max_new_tokens=12)])

    async def both() -> list[str]:
        return list(await asyncio.gather(*map(text, PROMPTS)))

    assert asyncio.run(both()) == [c.text for c in model.generate(PROMPTS, max_new_tokens=12)]


def test_completions_of_openai(model: Sparrow) -> None:
    whole = model.generate(PROMPTS[0], max_new_tokens=6)
    made = model.create_completion(PROMPTS[0], max_tokens=6, logprobs=1)
    assert isinstance(made, dict) and made["object"] == "text_completion"
    choice = made["choices"][0]
    assert choice["text"] == whole.text and choice["finish_reason"] == "length"
    assert "".join(choice["logprobs"]["tokens"]) == whole.text
    assert made["usage"] == {"prompt_tokens": whole.prompt_tokens, "completion_tokens": 6, "total_tokens": whole.prompt_tokens + 6}
    several = model.create_completion(PROMPTS, max_tokens=3)
    assert isinstance(several, dict) and [c["index"] for c in several["choices"]] == [0, 1]
    chunks = list(model.create_completion(PROMPTS[0], max_tokens=6, stream=True, echo=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == PROMPTS[0] + whole.text
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    json.dumps([made, several, chunks])


@pytest.fixture
def talker(demo: pathlib.Path, tmp_path: pathlib.Path) -> Sparrow:
    """The demo model with a chat template."""
    out = tmp_path / "talker"
    out.mkdir()
    for file in demo.iterdir():
        if file.is_file():
            (out / file.name).symlink_to(file)
    (out / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:{{ extra }}"
    )
    return Sparrow.from_pretrained(out)


def test_conversations(talker: Sparrow) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    prompt = "user: Hello\nassistant:"
    expected = talker.generate(talker.encode(prompt, add_special_tokens=False), max_new_tokens=10)
    answer = talker.chat(messages, max_new_tokens=10, temperature=0)
    assert answer.text == expected.text
    assert talker.chat("Hello", max_new_tokens=10, temperature=0).text == expected.text
    streamed = "".join(chunk.text for chunk in talker.chat_stream("Hello", max_new_tokens=10, temperature=0))
    assert streamed == expected.text
    made = talker.create_chat_completion(messages, max_tokens=10, temperature=0)
    assert isinstance(made, dict)
    assert made["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    chunks = list(talker.create_chat_completion(messages, max_tokens=10, temperature=0, stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected.text
    more = talker.chat("Hello", template_variables={"extra": " Once"}, max_new_tokens=3, temperature=0)
    assert more.prompt_tokens > answer.prompt_tokens
    # A second turn begins with what the first one computed.
    turn = [*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Go on"}]
    assert talker.chat(turn, max_new_tokens=4, temperature=0).cached_tokens > 0


def test_models_without_a_template_say_so(model: Sparrow) -> None:
    from sparrow_llm.errors import TemplateError

    with pytest.raises(TemplateError, match="has no chat template"):
        model.chat("Hello")


def test_scores_are_sums_of_log_probabilities(model: Sparrow) -> None:
    context, after = model.encode(PROMPTS[0]), model.encode(" there was a", add_special_tokens=False)
    score = model.score(PROMPTS[0], " there was a")
    logits = model.logits([*context, *after]).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [logprobs[len(context) - 1 + i, id] for i, id in enumerate(after)]
    assert np.allclose(score.token_logprobs, expected, atol=1e-4) and np.isclose(score.logprob, sum(expected), atol=1e-3)
    assert score.is_greedy == all(logits[len(context) - 1 + i].argmax() == id for i, id in enumerate(after))
    assert model.score([context, context], [after, after]) == [score, score]


def test_logits(model: Sparrow) -> None:
    ids = model.encode("The quick brown fox")
    every = model.logits(ids)
    assert every.shape == (len(ids), model.vocab_size) and every.dtype == np.float32 and every.flags.writeable
    assert np.allclose(model.logits(ids, last=True), every[-1], atol=1e-4)


def test_tokens(model: Sparrow) -> None:
    ids = model.encode("Hello <s> there")
    assert "Hello" in model.decode(ids)
    assert model.decode(ids, skip_special_tokens=False) != "" and model.encode("a", add_special_tokens=False)
    assert model.config["model_type"] == "llama" and model.eos_token_ids


def test_measures(model: Sparrow) -> None:
    speed = model.bench(prompt_tokens=16, new_tokens=8, runs=2)
    assert speed["decode_tokens_per_second"] > 0 and speed["prompt_tokens_per_second"] > 0
    profile = model.profile(prompt_tokens=8, new_tokens=4)
    assert {"qkv", "attention", "lm_head"} <= set(profile) and profile["qkv"]["mean"] > 0


def test_it_pickles_as_a_recipe(demo: pathlib.Path) -> None:
    model = Sparrow.from_pretrained(demo, threads=1, selector="gate", kv_dtype="f32")
    data = pickle.dumps(model)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert (again.threads, again.selector) == (1, "gate")
    assert again.generate(PROMPTS[0], max_new_tokens=8).text == model.generate(PROMPTS[0], max_new_tokens=8).text


def test_caches_can_be_sparse(demo: pathlib.Path) -> None:
    dense = Sparrow.from_pretrained(demo)
    sparse = Sparrow.from_pretrained(demo, kv_sparsity=0.5, kv_dense_tail=0, kv_dtype="int8", kv_sinks=4)
    text = (demo / "sample.txt").read_text()
    assert dense.perplexity(text, max_tokens=512).kl_mean == 0.0
    assert sparse.perplexity(text, max_tokens=512).kl_mean > 0.0
