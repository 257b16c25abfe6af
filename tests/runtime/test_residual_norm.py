"""LayerNorm(dense(x) + residual) in one pass, inside models."""

import copy
import pickle

import pytest
import torch
from torch import nn

import dsee
from behaviours.families import ALL
from conftest import batch, logits, tiny_bert
from dsee.kernels import library
from dsee.runtime.residual_norm import ResidualNorm, fuse_norms, unfuse_norms

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
#: Families whose layers end in the norm of a sum; two a layer.
ENDS_IN_NORM = {"bert", "roberta", "electra", "deberta-v2"}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits(family):
    model = family.base().eval()
    before = family.logits(model)
    classes = [type(module) for module in model.modules()]
    found = fuse_norms(model)
    assert bool(found) == (model.config.model_type in ENDS_IN_NORM)
    assert all(isinstance(module, ResidualNorm) for module in found)
    with torch.inference_mode():
        close(family.logits(model), before)
    unfuse_norms(found)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(family.logits(model), before)


def test_training_is_what_it_was():
    plain = tiny_bert().train()
    fused = copy.deepcopy(plain)
    with torch.no_grad():
        assert fuse_norms(fused.eval())
    for model in (plain, fused):
        torch.manual_seed(0)
        model.train()
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_copies_and_pickles_stay_fused():
    model = tiny_bert().eval()
    before = logits(model)
    found = fuse_norms(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert sum(isinstance(module, ResidualNorm) for module in again.modules()) == len(found)
        with torch.inference_mode():
            close(logits(again), before)


def test_what_a_hook_keeps_is_not_written_over():
    model = tiny_bert().eval()
    dsee.prune(model, dsee.Blocks(0.6, score="weight"))
    from dsee.kernels import to_kernels

    output = model.bert.encoder.layer[0].output
    to_kernels(output.dense, "blocks")
    assert fuse_norms(model)
    kept = []
    output.dense.register_forward_hook(lambda _, args, out: kept.append((out, out.clone())))
    with torch.inference_mode():
        logits(model)
    assert torch.equal(*kept[0])


def test_a_module_that_computes_something_else_is_left_alone():
    model = tiny_bert().eval()

    class Other(type(model.bert.encoder.layer[0].output)):
        def forward(self, hidden_states, input_tensor):
            return self.LayerNorm(self.dense(hidden_states) + 2 * input_tensor)

    model.bert.encoder.layer[0].output.__class__ = Other
    model.bert.encoder.layer[1].output.LayerNorm = nn.LayerNorm(model.config.hidden_size, bias=False)
    found = fuse_norms(model)
    assert model.bert.encoder.layer[0].output not in found
    assert model.bert.encoder.layer[1].output not in found
    assert model.bert.encoder.layer[0].attention.output in found


def test_optimize_fuses_says_so_and_undoes():
    model = tiny_bert().eval()
    dsee.prune(model, dsee.Blocks(0.6, score="weight"))
    before = logits(model)
    choices = dsee.optimize(model, batch())
    fused = [module for module in model.modules() if isinstance(module, ResidualNorm)]
    # the clock decides about the whole
    assert len(fused) == choices.norms
    assert (f"sum and layer norm in one: {choices.norms}" in str(choices)) == bool(fused)
    close(logits(model), before)
    choices.undo()
    assert not any(isinstance(module, ResidualNorm) for module in model.modules())
    assert torch.equal(logits(model), before)
