"""An export leaves the model as it found it."""

import contextlib

import pytest
import torch
from onnx_tools import exported, modes, unevenly_cut

from conftest import logits, tiny_bert
from dsee import ExportError
from dsee.runtime.onnx_parity import check_parity


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_an_export_leaves_every_modules_mode(name):
    export = exported(name)
    assert export.before["classifier"] is True
    assert export.before[""] is False
    assert export.after == export.before


def test_an_export_leaves_the_weights():
    assert torch.equal(logits(exported("bert").model), logits(unevenly_cut(tiny_bert())))


def test_an_export_leaves_which_parameters_are_trained():
    assert all(parameter.requires_grad for parameter in exported("bert").model.parameters())


@pytest.mark.parametrize("seed", [0, 1], ids=["agrees", "differs"])
@pytest.mark.parametrize("train", [True, False])
def test_a_comparison_leaves_the_mode_whether_it_succeeds_or_fails(train, seed):
    model = unevenly_cut(tiny_bert(seed)).train(train)
    model.classifier.train(not train)
    before = modes(model)
    with pytest.raises(ExportError) if seed else contextlib.nullcontext():
        check_parity(model, exported("bert").folder / "model.onnx", 80, 1e-4)
    assert modes(model) == before
