"""What the tests of layers that are computed in one call share."""

import torch

import dsee
from dsee.kernels import to_kernels
from dsee.kernels.linear import CLASSES
from dsee.runtime import own_attention
from dsee.runtime.activations import fuse

#: Families whose attention asks for nothing but hidden states and a mask, and whose halves end by the norm of a sum.
PLAIN = {"bert", "roberta", "electra", "distilbert"}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def sparse(model, kind="blocks", rule=None):
    """The model pruned, and all of it on the kernels."""
    dsee.prune(model, rule or dsee.Blocks(0.6, score="weight"))
    return on_kernels(model, kind)


def on_kernels(model, kind="blocks"):
    """The model with every linear on the kernels, its activations, and its attention."""
    for module in list(model.modules()):
        if type(module) in CLASSES:
            to_kernels(module, kind)
    fuse(model)
    base = own_attention.base_of(model)
    own_attention.register()
    if base is not None:
        base.set_attn_implementation(own_attention.NAME)
    return model


def in_one_call(model, logits, take_over, calls):
    """What ``take_over`` took over, once the model's logits have stayed; the calls it made are in ``calls``."""
    with torch.inference_mode():
        before = logits(model)
        found = take_over(model)
        calls.clear()
        close(logits(model), before)
    assert bool(calls) == bool(found)
    return found


def taken_over_and_given_back(family, take_over, give_back, calls):
    """A family keeps its logits while something is taken over, and all of itself once that is undone."""
    model = sparse(family.base().eval())
    classes = [type(module) for module in model.modules()]
    with torch.inference_mode():
        before = family.logits(model)
    found = in_one_call(model, family.logits, take_over, calls)
    assert bool(found) == (model.config.model_type in PLAIN)
    assert len(calls) == len(found)
    give_back(found)
    assert [type(module) for module in model.modules()] == classes
    with torch.inference_mode():
        assert torch.equal(family.logits(model), before)
