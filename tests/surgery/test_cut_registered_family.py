"""Whatever has a map is cut exactly, also a model that is not from transformers, and one of Conv1D layers."""

import importlib

import pytest
import torch
from mask_oracle import zeroed
from peft import get_peft_model
from toy_family import KINDS, TOY, Toy

import dsee
from conftest import batch, logits
from dsee.architectures import register, structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut

PLAN = [LayerPlan((1, 3), (0, 4, 23)), LayerPlan((0,), tuple(range(10)))]
TARGETS = ["ask", "give", "join", "widen", "narrow"]


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    registry = importlib.import_module("dsee.architectures._registry")
    monkeypatch.setattr(registry, "_MAPS", dict(registry._MAPS))
    register(TOY)


def updated(kind, support="random"):
    torch.manual_seed(1)
    config = dsee.DseeConfig(target_modules=TARGETS, r=3, n_sparse=20, support=support, init_weights=False)
    return get_peft_model(Toy(kind), config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [Toy, updated], ids=["bare", "updated"])
def test_cut_equals_mask(kind, build):
    model = build(kind).double()
    masked = zeroed(model, PLAN)
    assert (logits(model) - logits(masked)).abs().max() > 1e-2
    cut(model, PLAN)
    assert structure(model) == {"heads": [2, 3], "neurons": [21, 14]}
    torch.testing.assert_close(logits(model), logits(masked), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_chain(kind):
    model = updated(kind)
    rules = dsee.Heads(0.25), dsee.Neurons(0.5, score="taylor")
    report = dsee.prune(model, *rules, calibration=[batch(labels=True)])
    assert report.after == {"heads": [3, 3], "neurons": [12, 12]}
    unmerged = logits(model)
    small = dsee.merge(model)
    torch.testing.assert_close(logits(small), unmerged, rtol=0.0, atol=1e-5)
    assert [step["step"] for step in dsee.history(small)] == ["prune", "merge"]


def test_conv1d_and_linear_are_scored_and_cut_alike():
    linear, conv = Toy("Linear"), Toy("Conv1D")
    with torch.no_grad():
        for (name, to), source in zip(conv.named_parameters(), linear.parameters(), strict=True):
            to.copy_(source.T if to.dim() == 2 and "blocks" in name else source)
    torch.testing.assert_close(logits(conv), logits(linear), rtol=0.0, atol=1e-5)
    rules = dsee.Heads(0.5, score="weight"), dsee.Neurons(0.3)
    assert dsee.prune(conv, *rules).plans == dsee.prune(linear, *rules).plans
    torch.testing.assert_close(logits(conv), logits(linear), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_support_is_found(kind):
    model = updated(kind, support="grebsmo")
    # two blocks of three 20 x 20 and two 20 x 24 matrices, with r = 3 and N = 20
    assert dsee.parameters(model).update == 2 * (3 * (3 * 40 + 20) + 2 * (3 * 44 + 20))
