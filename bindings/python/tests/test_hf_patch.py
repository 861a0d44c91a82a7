"""`hf.patch`: sparse MLPs in place, whose numbers are those of a model that zeroes what is not selected."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import DEMO
from hf_models import FAMILIES, demo_model, random_model
from sparrow_llm import Sparrow, sparsify
from sparrow_llm.errors import GradientError, OptionError, UnsupportedModuleError
from sparrow_llm.hf import patch, unpatch
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.transformers

IDS = torch.tensor([[9, 5, 23, 61, 40, 12, 33, 8, 15, 70], [7, 31, 90, 4, 55, 80, 3, 3, 21, 44]])
ACTIVE = 20


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def keep_largest(module: Any, args: Any, output: Any) -> Any:
    """A hook of activations that zeroes all but the largest of each row."""
    threshold = output.abs().topk(ACTIVE, dim=-1).values[..., -1:]
    return output.masked_fill(output.abs() < threshold, 0)


def masked(model: Any) -> Any:
    """A copy that computes everything, and zeroes what is not among the most active neurons."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if name.endswith(("act_fn", "activation_fn")):
            module.register_forward_hook(keep_largest)
    return model


def close(found: Any, expected: Any) -> None:
    # Logits of about 10 from sums of 64 products in float32, in another order.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model = random_model(family)
    dense, expected = model(IDS).logits, masked(model)(IDS).logits
    assert (dense - expected).abs().max() > 0.01
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    found = patch(model, f"gate:top-k={ACTIVE}")
    assert len(found.layers) == model.config.num_hidden_layers
    close(model(IDS).logits, expected)
    assert list(model.state_dict()) == list(before)
    found.undo()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1], name
    assert torch.equal(model(IDS).logits, dense)
    patch(model, "dense")
    close(model(IDS).logits, dense)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Phi3", "OPT"])
def test_results_do_not_depend_on_how_steps_are_cut(family: str) -> None:
    model = random_model(family)
    patch(model, f"gate:top-k={ACTIVE}")
    whole = model(IDS).logits
    close(model(IDS[1:]).logits, whole[1:])
    step, cache = [], None
    for part in IDS.split((3, 1, 1, 5), dim=1):
        output = model(part, past_key_values=cache)
        cache = output.past_key_values if hasattr(output, "past_key_values") else output.cache
        step.append(output.logits)
    close(torch.cat(step, dim=1), whole)
    arguments = dict(
        attention_mask=torch.ones_like(IDS), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    assert torch.equal(model.generate(IDS, **arguments), model.generate(IDS, use_cache=False, **arguments))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_shared(dtype: torch.dtype) -> None:
    model = random_model("Llama").to(dtype)
    mlp = model.model.layers[0].mlp
    places = [mlp.gate_proj.weight.data_ptr(), mlp.up_proj.weight.data_ptr()]
    patch(model, "gate:top-k=20")
    first = model(IDS).logits
    assert [mlp.gate_proj.weight.data_ptr(), mlp.up_proj.weight.data_ptr()] == places
    for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        kept = linear.weight.clone()
        linear.weight.zero_()
        assert not torch.equal(model(IDS).logits, first)
        linear.weight.copy_(kept)
    assert torch.equal(model(IDS).logits, first)
    # Parameters that take the place of others have another layout.
    model.load_state_dict(
        {name: t.clone().contiguous() for name, t in model.state_dict().items()}, assign=True
    )
    assert torch.equal(model(IDS).logits, first)


@torch.no_grad()
def test_layers_hooks_and_copies() -> None:
    model = random_model("Qwen2", num_hidden_layers=3)
    called: list[str] = []
    model.model.layers[1].mlp.register_forward_hook(lambda *_: called.append("mlp"))
    dense = model(IDS).logits
    found = patch(model, "gate:top-k=20", layers=[1])
    assert found.layers == ["model.layers.1.mlp"] and "1 layers" in repr(found)
    assert "SparseQwen2MLP" in repr(model.model.layers[1]) and "Sparse" not in repr(model.model.layers[0])
    sparse = model(IDS).logits
    assert called == ["mlp", "mlp"]
    other = copy.deepcopy(model)
    unpatch(model)
    unpatch(model)
    assert torch.equal(model(IDS).logits, dense)
    assert torch.equal(other(IDS).logits, sparse) and not torch.equal(sparse, dense)
    other.model.layers[1].mlp.down_proj.weight.zero_()
    assert not torch.equal(other(IDS).logits, sparse) and torch.equal(model(IDS).logits, dense)
    unpatch(other)
    assert type(other.model.layers[1].mlp) is type(model.model.layers[1].mlp)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "OPT"])
def test_patched_models_are_saved_as_they_were(tmp_path: Path, family: str) -> None:
    model = random_model(family)
    dense = model(IDS).logits
    patch(model, "gate:top-k=20")
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(IDS).logits, dense)


class Logits(torch.nn.Module):
    """A model from ids to logits, as tracing wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(ids, use_cache=False).logits
        return logits


@torch.no_grad()
@pytest.mark.skipif(transformers.__version__ < "5", reason="torch traces no mask of transformers 4")
def test_models_are_traced() -> None:
    model = random_model("Llama")
    patch(model, "gate:top-k=20")
    expected = model(IDS).logits
    traced = torch.jit.trace(Logits(model), (IDS,), check_trace=False)
    assert "sparrow::sparse_mlp" in str(traced.inlined_graph)
    close(traced(IDS), expected)
    # Masks belong to what is computed, not to the trace.
    close(traced(IDS.flip(0)), expected.flip(0))


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_layers_are_traced_and_compiled(family: str) -> None:
    model = random_model(family)
    patch(model, "gate:top-k=20")
    mlp = model.model.layers[0].mlp
    x, y = torch.randn(2, 1, 3, 32, generator=torch.Generator().manual_seed(0))
    for made in (torch.jit.trace(mlp, (x,), check_trace=False), torch.compile(mlp, backend="aot_eager")):
        close(made(x), mlp(x))
        close(made(y), mlp(y))


def test_gradients_are_refused_when_they_are_wanted() -> None:
    model = random_model("Llama")
    patch(model, "gate:top-k=20")
    loss = model(IDS, labels=IDS).loss
    with torch.no_grad():
        close(loss.detach(), model(IDS, labels=IDS).loss)
    with pytest.raises(GradientError, match="unpatch"):
        loss.backward()
    unpatch(model)
    model(IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0


class AdaptedLinear(torch.nn.Linear):
    """What adapters and quantised layers are: a linear layer of another class."""


def wrap(mlp: Any) -> None:
    mlp.up_proj.__class__ = AdaptedLinear


def hook(mlp: Any) -> None:
    mlp.down_proj.register_forward_hook(lambda *_: None)


def offload(mlp: Any) -> None:
    mlp.gate_proj._hf_hook = object()


def override(mlp: Any) -> None:
    mlp.forward = lambda x: x


def other_activation(mlp: Any) -> None:
    mlp.act_fn = torch.nn.Tanh()


def other_device(mlp: Any) -> None:
    mlp.up_proj.to("meta")


REFUSED: dict[str, Callable[[Any], None]] = {
    r"layers.1.mlp.up_proj: expected a torch.nn.Linear, found a test_hf_patch.AdaptedLinear": wrap,
    r"layers.1.mlp.down_proj: has hooks": hook,
    r"layers.1.mlp.gate_proj: accelerate": offload,
    r"layers.1.mlp: something replaced its forward": override,
    r"layers.1.mlp: its activation Tanh": other_activation,
    r"layers.1.mlp.up_proj: expected a weight on the CPU, found one on meta": other_device,
}


@torch.no_grad()
@pytest.mark.parametrize("message", REFUSED)
def test_what_a_patch_would_break_is_refused_by_name(message: str) -> None:
    model = random_model("Llama")
    REFUSED[message](model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModuleError, match=message):
        patch(model, "gate:top-k=20")
    assert not any("Sparse" in type(module).__name__ for module in model.modules())


@torch.no_grad()
def test_other_refusals() -> None:
    class Clamped(type(random_model("Llama").model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(max=0))

    model = random_model("Llama")
    model.model.layers[1].mlp.__class__ = Clamped
    with pytest.raises(UnsupportedModuleError, match="Clamped is no down"):
        patch(model, "gate:top-k=20")
    model = random_model("Llama")
    with pytest.raises(OptionError, match="gate needs a rule"):
        patch(model)
    with pytest.raises(OptionError, match="lowrank needs calibrated=DIR"):
        patch(model, "lowrank")
    with pytest.raises(OptionError, match="use dense, gate"):
        patch(model, "sign")
    with pytest.raises(OptionError, match="top-l"):
        patch(model, "gate:top-l=3")
    with pytest.raises(OptionError, match="expected forced:active=F"):
        patch(model, "forced:active=2,overlap=0")
    with pytest.raises(OptionError, match="no MLP in layer 2"):
        patch(model, "gate:top-k=3", layers=[0, 2])
    with pytest.raises(UnsupportedModuleError, match="Linear has no MLPs"):
        patch(torch.nn.Linear(2, 2), "dense")
    patch(model, "gate:top-k=20")
    with pytest.raises(UnsupportedModuleError, match="layers.0.mlp: is patched already"):
        patch(model, "gate:top-k=20")
    wrap(model.model.layers[0].mlp)
    with pytest.raises(UnsupportedModuleError, match="up_proj became a AdaptedLinear"):
        model(IDS)


@torch.no_grad()
def test_forced_sets_have_their_size_and_overlap() -> None:
    model = random_model("OPT")
    patch(model, "forced:active=0.25,overlap=0.75")
    select = model.model.decoder.layers[0].fc1.sparrow.select
    x = torch.zeros(3, 5, 32)
    masks = torch.cat([select(x, None, None)[0].view(15, 64), select(x[0, :1], None, None)[0]])
    assert (masks.sum(-1) == 16).all()
    assert ((masks[1:] & masks[:-1]).sum(-1) == 12).all()
    assert model(IDS).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("selector", ["gate", "lowrank"])
def test_calibrated_models_select_what_the_engine_selects(tmp_path: Path, selector: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text((DEMO / "sample.txt").read_text())
    directory = tmp_path / selector
    sparsify(
        DEMO, directory, selector=selector, text=text, target_active=0.05, rank=0.1, window=64, progress=False
    )
    engine = Sparrow.from_pretrained(directory, kv_dtype="f32")
    ids = engine.encode((DEMO / "sample.txt").read_text())[:200]
    expected = torch.from_numpy(engine.logits(ids).copy())
    model = demo_model()
    dense = model(torch.tensor([ids])).logits[0]
    stored = json.loads((directory / "sparrow.json").read_text())["method"]
    assert list(stored) == [selector]
    patch(model, selector, calibrated=directory)
    found = model(torch.tensor([ids])).logits[0]
    # A score at its threshold may fall on either side of it, which moves some rows a little.
    divergence, from_dense = (
        torch.nn.functional.kl_div(
            found.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        for other in (expected, dense)
    )
    assert divergence < 1e-3 and divergence < from_dense / 10
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.98
    other = "gate" if selector == "lowrank" else "lowrank"
    with pytest.raises(OptionError, match=f"was not written by `sparrow sparsify --selector {other}`"):
        patch(demo_model(), other, calibrated=directory)
    with pytest.raises(OptionError, match="is of a model of 5 layers"):
        patch(
            random_model("Llama", num_hidden_layers=6, hidden_size=256, intermediate_size=1024),
            selector,
            calibrated=directory,
        )
