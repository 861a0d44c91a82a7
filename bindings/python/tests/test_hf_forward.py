"""`SparrowForCausalLM.forward`: logits, loss, caches that are continued, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from conftest import DEMO
from hf_models import random_model
from sparrow_llm.hf import SparrowForCausalLM
from sparrow_llm.hf.causal_lm import CACHE

pytestmark = pytest.mark.transformers

IDS = torch.tensor([[9, 5, 23, 61, 40, 12, 33], [7, 31, 90, 4, 55, 80, 3]])
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module", params=["Llama", "OPT"])
def models(request: Any, tmp_path_factory: Any) -> tuple[Any, SparrowForCausalLM]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("model")
    stock = random_model(request.param)
    stock.save_pretrained(directory)
    return stock, SparrowForCausalLM.from_pretrained(directory)


def close(ours: Any, theirs: Any) -> None:
    # Logits of about 10 from sums of 64 products in float32, in another order.
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_logits_and_loss(models: Any) -> None:
    stock, model = models
    labels = IDS.clone()
    labels[0, 3] = -100
    ours, theirs = model(IDS, labels=labels), stock(IDS, labels=labels)
    close(ours.logits, theirs.logits)
    close(ours.loss, theirs.loss)
    loss, logits, cache = model(IDS, labels=labels, return_dict=False)
    assert torch.equal(loss, ours.loss) and torch.equal(logits, ours.logits) and cache.get_seq_length() == 7
    ours, theirs = (either(IDS, labels=labels, num_items_in_batch=20).loss for either in (model, stock))
    close(ours, theirs)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(models: Any, side: str) -> None:
    stock, model = models
    mask = LEFT if side == "left" else LEFT.flip(-1)
    ours, theirs = model(IDS, attention_mask=mask), stock(IDS, attention_mask=mask)
    close(ours.logits[mask.bool()], theirs.logits[mask.bool()])
    assert not ours.logits[~mask.bool()].any()
    # transformers predicts the first token of a row from padding, which is no prediction.
    labels = IDS.masked_fill(~mask.bool(), -100)
    if side == "left":
        labels[0, 2] = -100
    ours = model(IDS, attention_mask=mask, labels=IDS.masked_fill(~mask.bool(), -100))
    close(ours.loss, stock(IDS, attention_mask=mask, labels=labels).loss)


@torch.inference_mode()
@pytest.mark.parametrize("keep", [1, 3, torch.tensor([1, 4]), torch.tensor([6])], ids=str)
def test_logits_to_keep(models: Any, keep: Any) -> None:
    model = models[1]
    whole = model(IDS, attention_mask=LEFT).logits
    kept = model(IDS, attention_mask=LEFT, logits_to_keep=keep).logits
    close(kept, whole[:, keep if isinstance(keep, torch.Tensor) else slice(-keep, None)])


@torch.inference_mode()
def test_a_cache_is_continued_cropped_and_copied(models: Any) -> None:
    model = models[1]
    whole = model(IDS, attention_mask=LEFT).logits
    output = model(IDS[:, :4], attention_mask=LEFT[:, :4])
    cache = output[CACHE]
    copied = copy.deepcopy(cache)
    close(model(IDS[:, 4:], attention_mask=LEFT, **{CACHE: cache}).logits, whole[:, 4:])
    cache.crop(-2)
    assert cache.get_seq_length() == 5
    # Either name is understood, whatever the version calls it.
    close(model(IDS[:, 5:6], attention_mask=LEFT[:, :6], past_key_values=cache).logits, whole[:, 5:6])
    close(model(IDS[:, 4:], attention_mask=LEFT, cache=copied).logits, whole[:, 4:])
    cache.crop(-99)
    assert cache.get_seq_length() == 0
    close(model(IDS, attention_mask=LEFT, **{CACHE: cache}).logits, whole)
    cache.reset()
    close(model(IDS[:1, 2:], **{CACHE: cache}).logits, whole[:1, 2:])
    assert CACHE not in model(IDS, use_cache=False)


@torch.inference_mode()
def test_rows_are_repeated_and_selected(models: Any) -> None:
    model = models[1]
    whole = model(IDS).logits
    cache = model(IDS[:, :5])[CACHE]
    cache.batch_repeat_interleave(3)
    ids = IDS.repeat_interleave(3, dim=0)
    close(model(ids[:, 5:6], **{CACHE: cache}).logits, whole.repeat_interleave(3, dim=0)[:, 5:6])
    cache.batch_select_indices(torch.tensor([4, 0]))
    close(model(IDS[[1, 0], 6:], **{CACHE: cache}).logits, whole[[1, 0], 6:])
    cache.batch_select_indices(torch.tensor([False, True]))
    cache.crop(-1)
    close(model(IDS[:1, 6:], **{CACHE: cache}).logits, whole[:1, 6:])


@torch.inference_mode()
def test_generate_goes_on_from_a_prompt_cache(models: Any) -> None:
    stock, model = models
    cache = model(IDS[:, :6])[CACHE]
    arguments = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    alone = stock.generate(IDS, attention_mask=torch.ones_like(IDS), **arguments)
    for prompt_cache in (copy.deepcopy(cache), transformers.DynamicCache()):
        again = model.generate(IDS, attention_mask=torch.ones_like(IDS), **{CACHE: prompt_cache}, **arguments)
        assert torch.equal(again, alone)


@torch.inference_mode()
def test_refusals(models: Any) -> None:
    stock, model = models
    cache = model(IDS[:, :4], attention_mask=LEFT[:, :4])[CACHE]
    holes = torch.tensor([[1, 0, 1, 1, 1, 1, 1]] * 2)
    cases: list[tuple[str, type[Exception], dict[str, Any]]] = [
        ("between tokens", ValueError, dict(attention_mask=holes)),
        (
            "row 0 of attention_mask ends with padding",
            ValueError,
            dict(attention_mask=LEFT.flip(-1), logits_to_keep=1),
        ),
        ("must have the shape", ValueError, dict(attention_mask=LEFT[:, :5])),
        ("are cached of the rows", ValueError, dict(cache=cache, attention_mask=torch.ones(2, 11))),
        ("pass the attention_mask", ValueError, dict(cache=cache)),
        ("position_ids", ValueError, dict(position_ids=torch.arange(7)[None] + 3)),
        ("has 2 rows, the cache 1", ValueError, dict(cache=model(IDS[:1])[CACHE])),
        ("labels must have the shape", ValueError, dict(labels=IDS[:, :3])),
        ("no inputs_embeds", ValueError, dict(inputs_embeds=torch.zeros(2, 7, 32))),
        ("no output_hidden_states", ValueError, dict(output_hidden_states=True)),
        ("DynamicCache of another model", TypeError, dict(cache=stock(IDS)[CACHE])),
    ]
    for message, error, arguments in cases:
        with pytest.raises(error, match=message):
            model(IDS, **arguments)
    other = SparrowForCausalLM.from_pretrained(DEMO)
    with pytest.raises(ValueError, match="another SparrowForCausalLM"):
        other(IDS, cache=cache)
    with pytest.raises(ValueError, match="not between|96"):
        model(torch.tensor([[96]]))


@torch.inference_mode()
def test_a_step_that_fails_appends_nothing(models: Any) -> None:
    model = models[1]
    cache = model(IDS)[CACHE]
    whole = model(torch.cat([IDS, IDS], dim=-1)).logits
    with pytest.raises(ValueError, match="64|context"):
        model(IDS.repeat(1, 10), **{CACHE: cache})
    with pytest.raises(ValueError, match="96"):
        model(torch.tensor([[5, 5], [96, 5]]), **{CACHE: cache})
    close(model(IDS, **{CACHE: cache}).logits, whole[:, 7:])


def test_loss_wants_no_gradient() -> None:
    model = SparrowForCausalLM.from_pretrained(DEMO)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(IDS, labels=IDS).loss.backward()
