"""Query, key, value and attention in one call, inside models."""

import copy
import pickle

import pytest
import torch
from one_call import PLAIN, close, in_one_call, sparse, taken_over_and_given_back

import dsee
from behaviours.families import ALL
from conftest import batch, logits, tiny_bert
from dsee.kernels import library, to_kernels
from dsee.runtime import one_call_attention, own_attention
from dsee.runtime.one_call_attention import OneCall, fuse_attention, unfuse_attention

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")


@pytest.fixture
def calls(monkeypatch):
    """One entry for each attention that is computed in one call."""
    made, real = [], one_call_attention.self_attention
    monkeypatch.setattr(one_call_attention, "self_attention", lambda *a, **k: made.append(1) or real(*a, **k))
    return made


@pytest.fixture
def fused():
    """A small BERT whose attention is one call, and its logits before."""
    model = sparse(tiny_bert().eval())
    with torch.inference_mode():
        before = logits(model)
    assert len(fuse_attention(model)) == model.config.num_hidden_layers
    return model, before


@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits(family, calls):
    taken_over_and_given_back(family, fuse_attention, unfuse_attention, calls)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_heads_that_are_gone_stay_gone(name, calls):
    model = ALL[name].base().eval()
    dsee.prune(model, dsee.Heads(0.5, score="weight"))
    assert in_one_call(sparse(model), ALL[name].logits, fuse_attention, calls)


def test_single_weights_fit_too(calls):
    assert in_one_call(sparse(tiny_bert().eval(), "weights"), logits, fuse_attention, calls)


def test_it_is_one_call_only_where_nothing_more_is_asked(fused, calls):
    model, before = fused
    layer = model.bert.encoder.layer[0].attention.self
    count = model.config.num_hidden_layers

    def called(expected):
        calls.clear()
        with torch.inference_mode():
            close(logits(model), before)
        assert len(calls) == expected

    called(count)
    # gradients are asked for
    calls.clear()
    close(model(**batch()).logits.detach(), before)
    assert not calls
    # somebody looks at the queries
    shapes = []
    hook = layer.query.register_forward_hook(lambda _, args, out: shapes.append(out.shape[-1]))
    called(count - 1)
    assert shapes
    hook.remove()
    # one of the three is no longer on the kernels
    from dsee.kernels import from_kernels

    from_kernels(layer.value)
    called(count - 1)
    to_kernels(layer.value, "weights")
    called(count - 1)
    from_kernels(layer.value)
    to_kernels(layer.value, "blocks")
    called(count)
    # another attention is asked for
    for other in ("sdpa", "eager"):
        model.set_attn_implementation(other)
        called(0)
    model.set_attn_implementation(own_attention.NAME)
    called(count)


def test_a_changed_weight_is_packed_again(fused, calls):
    model, before = fused
    query = model.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.weight.mul_(2.0)
    with torch.inference_mode():
        changed = logits(model)
        assert calls
        model.set_attn_implementation("sdpa")
        close(changed, logits(model))
    assert not torch.allclose(changed, before, rtol=1e-3)


def test_training_is_what_it_was():
    plain = sparse(tiny_bert())
    other = copy.deepcopy(plain).eval()
    assert fuse_attention(other)
    for model in (plain, other):
        model.train()
        torch.manual_seed(0)
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_copies_and_pickles_stay_so(fused, calls):
    model, before = fused
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert sum(isinstance(module, OneCall) for module in again.modules()) == model.config.num_hidden_layers
        calls.clear()
        with torch.inference_mode():
            close(logits(again), before)
        assert calls


def test_attention_weights_are_still_refused_or_given_as_before(fused):
    model, _ = fused
    with torch.inference_mode():
        found = model(**batch(), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    unfuse_attention([module for module in model.modules() if isinstance(module, OneCall)])
    with torch.inference_mode():
        expected = model(**batch(), output_attentions=True).attentions
    assert (found is None) == (expected is None)
    assert found is None or [type(a) for a in found] == [type(a) for a in expected]


def test_a_module_that_computes_something_else_is_left_alone():
    model = sparse(tiny_bert().eval())
    first, second = (layer.attention.self for layer in model.bert.encoder.layer[:2])

    class Louder(type(first)):
        def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
            out, weights = super().forward(hidden_states, attention_mask, past_key_values, **kwargs)
            return 2 * out, weights

    class Asking(type(second)):
        def forward(self, hidden_states, attention_mask=None, rotation=None, **kwargs):
            return super().forward(hidden_states, attention_mask, **kwargs)

    first.__class__, second.__class__ = Louder, Asking
    found = fuse_attention(model)
    assert first not in found
    assert second not in found


def test_it_compiles(fused):
    model, before = fused
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        close(logits(compiled), before)
