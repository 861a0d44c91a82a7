"""Modules in the place of linear layers: results, state dicts, conversions, and undoing."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from sparrow_llm import nn, ops
from sparrow_llm.errors import GradientError, OptionError, UnsupportedModuleError
from sparrow_llm.nn.rows import torch_is_faster

pytestmark = pytest.mark.torch

KINDS = ("dense", "sparse", "int8", "sparse-int8")
# Rounding to 8 bits changes results by this at most in these models.
TOLERANCE = {"dense": 1e-5, "sparse": 1e-5, "int8": 0.05, "sparse-int8": 0.05}


class Model(torch.nn.Module):
    """Layers in every position: shared, nested, in a list, a head, and one that is derived from Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 16)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"up": torch.nn.Linear(16, 30)}) for _ in range(2)
        )
        self.down = torch.nn.Linear(30, 16, bias=False)
        self.again = self.down
        self.derived = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(16, 16)
        self.lm_head = torch.nn.Linear(16, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + self.again(self.down(layer["up"](x).relu()).repeat(1, 2)[..., :30])
        return self.lm_head(self.derived(x))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


IDS = torch.tensor([1, 5, 3, 3, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_models_give_the_same_and_undo_gives_the_old_one(model: Model, kind: Any) -> None:
    old = dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        expected = model(IDS)
        replaced = nn.replace_linear_layers(model, kind)
        assert (model(IDS) - expected).abs().max() < TOLERANCE[kind]
    assert replaced.count == 3
    assert model.again is model.down and type(model.down) is not torch.nn.Linear
    assert type(model.lm_head) is torch.nn.Linear and model.derived is old["derived"]
    before = sum(4 * n for n in (2 * 16 * 30, 30 * 16))
    assert replaced.bytes_before == before
    assert replaced.bytes == before if kind == "dense" else replaced.bytes != before
    replaced.undo()
    now = dict(model.named_modules(remove_duplicate=False))
    assert now.keys() == old.keys() and all(now[name] is old[name] for name in old)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_conversions_and_files(model: Model, kind: Any) -> None:
    nn.replace_linear_layers(model, kind)
    with torch.no_grad():
        expected = model(IDS)
        assert torch.equal(copy.deepcopy(model)(IDS), expected)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = Model()
        nn.replace_linear_layers(other, kind)
        with torch.no_grad():
            other.down.bias = None
        other.load_state_dict(torch.load(file))
        assert torch.equal(other(IDS), expected)
        other.load_state_dict(model.state_dict(), assign=True)
        assert torch.equal(other(IDS), expected)
        halved = copy.deepcopy(model).bfloat16()
        assert (halved(IDS) - expected).abs().max() < 0.1
        # Scales stay as they are, and so does what they multiply.
        assert (halved.float()(IDS) - expected).abs().max() < 0.1
    for name, t in model.state_dict().items():
        assert t.is_contiguous(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "export"])
def test_compiled_and_exported(model: Model, kind: Any, compiler: str) -> None:
    nn.replace_linear_layers(model, kind)
    torch._dynamo.reset()
    with torch.no_grad():
        if compiler == "export":
            function = torch.export.export(model, (IDS,)).module()
        else:
            function = torch.compile(model, backend=compiler, fullgraph=True)
        torch.testing.assert_close(function(IDS), model(IDS))


def test_state_dicts_have_the_names_of_compressed_tensors() -> None:
    linear = torch.nn.Linear(20, 30)
    shapes = {
        nn.DenseLinear.from_linear(linear): {"weight": (30, 20), "bias": (30,)},
        nn.Int8Linear.from_linear(linear): {"weight": (30, 20), "weight_scale": (30, 1), "bias": (30,)},
        nn.SparseLinear.from_linear(linear, 0.5): {
            "shape": (2,),
            "bitmask": (30, 3),
            "compressed": (300,),
            "row_offsets": (30,),
            "bias": (30,),
        },
        nn.SparseLinear.from_linear(linear, 0.5, dtype=torch.int8): {
            "shape": (2,),
            "bitmask": (30, 3),
            "compressed": None,
            "row_offsets": (30,),
            "weight_scale": (30, 1),
            "bias": (30,),
        },
    }
    for module, expected in shapes.items():
        state = module.state_dict()
        assert state.keys() == expected.keys()
        for name, shape in expected.items():
            assert shape is None or tuple(state[name].shape) == shape


def test_pruning_keeps_the_largest() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        linear = torch.nn.Linear(64, 50).to(dtype)
        for sparsity in (0.0, 0.3, 0.5, 1.0):
            sparse = nn.SparseLinear.from_linear(linear, sparsity)
            assert sparse.compressed.numel() == 3200 - int(3200 * sparsity)
            assert sparse.density == pytest.approx(1 - sparsity, abs=1e-3)
            magnitudes = linear.weight.detach().abs().flatten().sort(descending=True).values
            kept = sparse.compressed.abs().sort(descending=True).values
            assert torch.equal(kept, magnitudes[: kept.numel()])
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(OptionError, match="sparsity"):
            nn.SparseLinear.from_linear(linear, wrong)
    with pytest.raises(OptionError, match="dtype"):
        nn.SparseLinear.from_linear(linear, dtype=torch.float64)


def test_dense_layers_share_their_parameters_and_train() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 5)
    dense = nn.DenseLinear.from_linear(linear)
    assert dense.weight is linear.weight and dense.bias is linear.bias
    x = torch.randn(3, 8)
    for layer in (linear, dense):
        layer(x).square().sum().backward()
    # Both have added the same to the parameters that they share.
    half = linear.weight.grad / 2
    linear.weight.grad = None
    linear(x).square().sum().backward()
    torch.testing.assert_close(linear.weight.grad, half)
    torch.optim.SGD(dense.parameters(), 0.1).step()
    torch.testing.assert_close(dense(x), linear(x))


def test_others_say_that_they_have_no_gradients() -> None:
    linear, x = torch.nn.Linear(8, 5), torch.randn(3, 8)
    for module in (nn.Int8Linear.from_linear(linear), nn.SparseLinear.from_linear(linear)):
        assert not module(x).requires_grad
        with pytest.raises(GradientError, match="no_grad"):
            module(x.clone().requires_grad_())


def test_rows_for_torch_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(ops, "dense_linear", lambda *args: calls.append(args[0].shape) or args[0])
    dense = nn.DenseLinear.from_linear(torch.nn.Linear(8, 8).bfloat16())
    for rows in range(1, 40):
        calls.clear()
        dense(torch.randn(1, rows, 8).bfloat16())
        assert bool(calls) != torch_is_faster(torch.bfloat16, rows)


def test_a_loaded_weight_is_checked_again() -> None:
    sparse = nn.SparseLinear.from_linear(torch.nn.Linear(16, 4), 0.5)
    x = torch.randn(2, 16)
    sparse(x)
    state = sparse.state_dict()
    state["bitmask"] = torch.full_like(state["bitmask"], 255)
    sparse.load_state_dict(state)
    with pytest.raises(ValueError, match="bitmask"):
        sparse(x)
    # Another number of stored elements is another weight of the same shape.
    sparse.load_state_dict(nn.SparseLinear.from_linear(torch.nn.Linear(16, 4), 0.75).state_dict())
    assert sparse(x).shape == (2, 4) and sparse.density == 0.25
    with pytest.raises(RuntimeError, match="shape: expected \\[4, 16\\], found \\[4, 15\\]"):
        sparse.load_state_dict(nn.SparseLinear.from_linear(torch.nn.Linear(15, 4)).state_dict())
    with pytest.raises(RuntimeError, match="compressed"):
        sparse.load_state_dict({k: v for k, v in sparse.state_dict().items() if k != "compressed"})


def test_patterns(model: Model) -> None:
    def replaced(patterns: tuple[str, ...], exclude: tuple[str, ...] = ("lm_head",)) -> list[str]:
        undo = nn.replace_linear_layers(model, "dense", patterns, exclude)
        names = [name for name, m in model.named_modules() if isinstance(m, nn.DenseLinear)]
        undo.undo()
        return names

    assert replaced(("*",), ()) == ["layers.0.up", "layers.1.up", "down", "lm_head"]
    assert replaced(("up",)) == ["layers.0.up", "layers.1.up"]
    assert replaced(("layers.1.*", "down")) == ["layers.1.up", "down"]
    assert replaced(("*",), ("layers.0.*", "down", "again")) == ["layers.1.up", "lm_head"]
    with pytest.raises(OptionError, match="nothing"):
        nn.replace_linear_layers(model, "dense", ("nothing",))
    with pytest.raises(OptionError, match="kind"):
        nn.replace_linear_layers(model, "int3")  # type: ignore[arg-type]


def test_a_layer_that_cannot_be_replaced_is_named_and_nothing_changes(model: Model) -> None:
    changes: list[Any] = [
        lambda linear: linear.double(),
        lambda linear: linear.to("meta"),
        lambda linear: linear.register_forward_hook(lambda *args: None) and linear,
        lambda linear: setattr(linear, "_hf_hook", None) or linear,
    ]
    for change in changes:
        broken = copy.deepcopy(model)
        change(broken.layers[1]["up"])
        with pytest.raises(UnsupportedModuleError, match=r"layers\.1\.up"):
            nn.replace_linear_layers(broken, "int8")
        assert all(type(layer["up"]) is torch.nn.Linear for layer in broken.layers)


def test_undo_leaves_what_was_replaced_since(model: Model) -> None:
    replaced = nn.replace_linear_layers(model)
    mine = torch.nn.Linear(16, 30)
    model.layers[0]["up"] = mine
    replaced.undo()
    assert model.layers[0]["up"] is mine and type(model.layers[1]["up"]) is torch.nn.Linear
