"""2:4 in dsee.optimize: everything but the one call of torch's converter, which needs a GPU and is tested on one."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import dsee
from behaviours.families import ALL
from conftest import adapted, batch, logits, tiny_bert
from dsee.errors import InputError, OrderError
from dsee.kernels import library, on_kernels, two_four
from dsee.kernels.two_four import OnTensorCores, from_two_four, missing, to_two_four, unfit
from dsee.runtime import optimize as module

HALF = torch.bfloat16
PAIRS = dsee.NofM(2, 4, score="weight")
#: Of BERT's, all sizes but the classifier's are multiples of 16.
SIZES = {"hidden_size": 32, "intermediate_size": 64}


@pytest.fixture
def packed(monkeypatch):
    """As if this machine had a GPU: what is packed is a copy of the weight, so a product of it is one of the weight."""
    made = []

    def convert(weight):
        made.append(weight.detach().clone(memory_format=torch.contiguous_format))
        return made[-1]

    monkeypatch.setattr(two_four, "missing", lambda device: None)
    monkeypatch.setattr(module, "missing", lambda device: None)
    monkeypatch.setattr(two_four, "convert", convert)
    return made


@pytest.fixture
def two_four_wins(monkeypatch, packed):
    """The clock prefers 2:4."""

    def race(calls, rounds):
        for call in calls.values():
            call()
        return {name: 0.6 if name == "2:4" else 1.0 for name in calls}

    monkeypatch.setattr(module, "_race", race)
    return packed


def pruned(rule=PAIRS):
    model = tiny_bert(**SIZES)
    dsee.prune(model, rule)
    return model.to(HALF)


def test_layers_with_two_of_four_run_as_such_and_undo_restores(two_four_wins):
    model = pruned()
    before, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    choices = dsee.optimize(model, batch())
    found = on_kernels(model)
    assert len(found) == len(two_four_wins) == 18
    assert {type(layer).__name__ for layer in found.values()} == {"TwoFourLinear"}
    assert {layer.chosen for layer in choices.layers} == {"2:4", "dense"}
    assert torch.equal(logits(model), before)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert "2:4" in str(choices)
    assert " 50% stored  dense 1.000 ms  2:4 0.600 ms" in str(choices)
    assert "kernel=2:4)" in repr(model)
    # those without a mask, and why
    reasons = {layer.name: layer.reason for layer in choices.layers if layer.chosen == "dense"}
    assert "not 2:4: " in reasons["bert.pooler.dense"]
    assert "multiples of 16 x 16, not 2 x 32" in reasons["classifier"] or "not 3 x 32" in reasons["classifier"]
    assert f"({reasons['classifier']})" in str(choices)
    choices.undo()
    assert on_kernels(model) == {}
    assert all(type(each) is nn.Linear for name, each in model.named_modules() if name.endswith("dense"))
    assert torch.equal(logits(model), before)


def test_the_packed_weight_is_what_computes(two_four_wins):
    model = pruned()
    before = logits(model)
    dsee.optimize(model, batch())
    for weight in two_four_wins:
        weight.mul_(2.0)
    assert not torch.equal(logits(model), before)


def test_conv1d_is_packed_as_out_by_in(two_four_wins):
    family = ALL["gpt2"]
    model = family.base().eval()
    dsee.prune(model, PAIRS)
    model = model.to(HALF)
    before = family.logits(model)
    dsee.optimize(model, family.batch())
    found = on_kernels(model)
    assert {type(layer).__name__ for layer in found.values()} >= {"TwoFourConv1D"}
    layer = next(each for each in found.values() if isinstance(each, Conv1D))
    assert layer.packed().shape == tuple(reversed(layer.weight.shape))
    torch.testing.assert_close(family.logits(model), before, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["llama", "distilbert", "t5"])
def test_other_families_keep_their_logits(two_four_wins, name):
    family = ALL[name]
    model = family.base().eval()
    dsee.prune(model, PAIRS)
    model = model.to(HALF)
    before = family.logits(model)
    choices = dsee.optimize(model, family.batch())
    assert on_kernels(model)
    torch.testing.assert_close(family.logits(model), before)
    choices.undo()
    assert torch.equal(family.logits(model), before)


def test_gradients_and_a_changed_weight(two_four_wins):
    model = pruned()
    dsee.optimize(model, batch())
    layer = model.bert.encoder.layer[0].output.dense
    assert isinstance(layer, OnTensorCores)
    x = torch.randn(2, 3, 64, dtype=HALF)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    packs = len(two_four_wins)
    with torch.no_grad():
        first = layer(x)
        layer.weight.mul_(2.0)
        layer.bias.mul_(2.0)
        assert torch.equal(layer(x), 2 * first)
        assert len(two_four_wins) == packs + 1
        # no longer two of four: densely, and right
        layer.weight.add_(1.0)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert len(two_four_wins) == packs + 1
        assert layer(x[:, :0]).shape == (2, 0, 32)
        assert layer(x[0, 0]).shape == (32,)
        with torch.autocast("cpu", dtype=HALF):
            assert layer(x).dtype == HALF
    assert layer.float()(x.float()).dtype == torch.float32


def test_a_copy_packs_its_own_weight(two_four_wins):
    model = pruned()
    dsee.optimize(model, batch())
    packs = len(two_four_wins)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    assert len(two_four_wins) == packs + len(on_kernels(model))


def test_an_update_beside_it_stays_and_steps_ask_for_undo(two_four_wins):
    model = adapted(pruned())
    before = logits(model)
    choices = dsee.optimize(model, batch())
    assert on_kernels(model)
    torch.testing.assert_close(logits(model), before)
    with pytest.raises(OrderError, match="already"):
        dsee.optimize(model, batch())
    with pytest.raises(OrderError, match="undo"):
        dsee.merge(model)
    choices.undo()
    with pytest.warns(UserWarning, match="every zero kept"):
        dsee.merge(model)


def test_files_are_those_of_the_plain_model(two_four_wins, tmp_path):
    model = pruned()
    dsee.save(model, tmp_path / "plain")
    dsee.optimize(model, batch())
    dsee.save(model, tmp_path / "fast")
    for name in ("model.safetensors", "masks.safetensors", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fast" / name).read_bytes()


@pytest.mark.parametrize("share", [0.98, 1.0, 3.0])
def test_a_layer_keeps_the_dense_way_unless_it_gains_three_percent(packed, monkeypatch, share):
    monkeypatch.setattr(module, "_race", lambda calls, rounds: {n: share if n == "2:4" else 1.0 for n in calls})
    model = pruned()
    choices = dsee.optimize(model, batch())
    assert on_kernels(model) == {}
    assert {layer.chosen for layer in choices.layers} == {"dense"}
    assert sum("2:4" in layer.times_ms for layer in choices.layers) == 18


def test_a_whole_that_gains_nothing_is_undone(packed, monkeypatch):
    def race(calls, rounds):
        race.whole += "model" in calls
        return {name: {"dense": 1.0, "model": float(race.whole)}.get(name, 0.5) for name in calls}

    race.whole = 0
    monkeypatch.setattr(module, "_race", race)
    model = pruned()
    choices = dsee.optimize(model, batch())
    assert (on_kernels(model), choices.gain) == ({}, 1.0)
    assert {layer.chosen for layer in choices.layers} == {"dense"}
    assert any(layer.reason for layer in choices.layers)


def test_what_a_backend_refuses_stays_dense_with_its_words(packed, monkeypatch):
    def refusing(weight):
        raise RuntimeError("cuSPARSELt not supported on your machine\nmore of it")

    monkeypatch.setattr(two_four, "convert", refusing)
    model = pruned()
    before = logits(model)
    choices = dsee.optimize(model, batch())
    assert on_kernels(model) == {}
    said = {layer.reason for layer in choices.layers if layer.name.endswith("query")}
    assert said == {"torch refuses: cuSPARSELt not supported on your machine"}
    assert torch.equal(logits(model), before)


def test_without_a_gpu_half_precision_is_left_dense_and_told_why():
    choices = dsee.optimize(pruned(), batch())
    if library() is None:
        assert choices.layers == []
        return
    assert {layer.chosen for layer in choices.layers} == {"dense"}
    wanted = "our kernels take float32; 2:4 needs an NVIDIA GPU, and the weights are on cpu"
    assert {layer.reason for layer in choices.layers} == {wanted}


def test_a_model_on_another_device_is_left_dense_and_told_why():
    model = pruned(dsee.Blocks(0.6, score="weight")).to("meta")
    choices = dsee.optimize(model, {"input_ids": batch()["input_ids"].to("meta")})
    assert {(layer.chosen, layer.reason) for layer in choices.layers} == {
        ("dense", "2:4 needs an NVIDIA GPU, and the weights are on meta")
    }
    assert choices.summary.startswith("0 of 20 linear layers on sparse kernels (2:4 needs an NVIDIA GPU")


@pytest.mark.parametrize(
    ("capability", "why"), [((7, 5), "needs compute capability 8.0, and T4 has 7.5"), ((8, 0), None), ((9, 0), None)]
)
def test_old_gpus_are_told_so(monkeypatch, capability, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    found = missing(torch.device("cuda", 0))
    assert found is None if why is None else why in found


def two_of_four(rows, columns, dtype=HALF):
    weight = torch.randn(rows, columns)
    weight.view(rows, -1, 4)[..., :2] = 0
    return weight.to(dtype)


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (two_of_four(16, 32), None),
        (two_of_four(16, 32, torch.float16), None),
        (torch.zeros(16, 16, dtype=HALF), None),
        (two_of_four(16, 32, torch.float32), "takes float16 and bfloat16, not float32"),
        (two_of_four(24, 32), "multiples of 16 x 16, not 24 x 32"),
        (two_of_four(32, 40), "multiples of 16 x 16, not 32 x 40"),
        (torch.ones(16, 16, dtype=HALF), "100% of its groups of four inputs keep more than two"),
        # two of four along the outputs is none along the inputs
        (two_of_four(32, 32).T, "keep more than two"),
    ],
)
def test_what_can_be_packed(weight, why):
    found = unfit(weight)
    assert found is None if why is None else why in found


def test_a_layer_that_cannot_is_refused_and_stays(packed):
    layer = nn.Linear(16, 16, dtype=HALF)
    with pytest.raises(InputError, match="not 2:4"):
        to_two_four(layer)
    assert type(layer) is nn.Linear
    with pytest.raises(InputError, match="a GELU cannot run as 2:4"):
        to_two_four(nn.GELU())
    layer.weight.data.copy_(two_of_four(16, 16))
    to_two_four(layer)
    from_two_four(layer)
    assert type(layer) is nn.Linear
    assert "_dsee_sparse" not in layer.__dict__


@pytest.mark.skipif(
    not torch.cuda.is_available() or missing(torch.device("cuda")) is not None, reason="no GPU with 2:4 here"
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu_the_product_is_the_dense_one(dtype):
    torch.manual_seed(0)
    for bias in (True, False):
        dense = nn.Linear(768, 3072, bias=bias).cuda().to(dtype)
        dense.weight.data.copy_(two_of_four(3072, 768, dtype))
        fast = copy.deepcopy(dense)
        to_two_four(fast)
        for shape in ((8, 128, 768), (1, 1, 768), (3, 7, 768)):
            x = torch.randn(shape, device="cuda", dtype=dtype)
            with torch.no_grad():
                torch.testing.assert_close(fast(x), dense(x), rtol=2e-2, atol=2e-2)
    model = tiny_bert(hidden_size=64, intermediate_size=256)
    dsee.prune(model, PAIRS)
    model = model.cuda().to(dtype)
    inputs = {name: tensor.cuda() for name, tensor in batch(8, 64).items()}
    with torch.no_grad():
        before = model(**inputs).logits
        choices = dsee.optimize(model, inputs)
        torch.testing.assert_close(model(**inputs).logits, before, rtol=5e-2, atol=5e-2)
        assert choices.gain >= 1.0
        assert all("2:4" in each.times_ms for each in choices.layers if each.name.endswith("query"))
        choices.undo()
        assert torch.equal(model(**inputs).logits, before)
