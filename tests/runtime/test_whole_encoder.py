"""Whole encoders in one call, inside models."""

import copy
import pickle

import pytest
import torch
from one_call import PLAIN, close, in_one_call, on_kernels, sparse, taken_over_and_given_back
from peft import get_peft_model

import dsee
from behaviours.families import ALL
from conftest import batch, logits, tiny_bert
from dsee.kernels import encoder, from_kernels, library, to_kernels
from dsee.kernels.encoder import Encoder
from dsee.kernels.linear import CLASSES
from dsee.runtime import optimize, own_attention
from dsee.runtime.agreement import all_alike
from dsee.runtime.choices import Choice
from dsee.runtime.side_kernels import register
from dsee.runtime.whole_encoder import WholeEncoder, fuse_encoders, unfuse_encoders

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
#: As the module has it.
FULLEST = encoder.FULLEST


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    """Few tokens are not shared among threads, and how full their panels are is the machine's business."""
    monkeypatch.setattr(encoder, "FULLEST", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch):
    """One entry for each encoder that is computed in one call."""
    made, real = [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda *a: made.append(1) or real(*a))
    return made


@pytest.fixture
def fused():
    """A small BERT whose encoder is one call, and its logits before."""
    model = sparse(tiny_bert().eval())
    with torch.inference_mode():
        before = logits(model)
    assert len(fuse_encoders(model)) == 1
    return model, before


@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits(family, calls):
    taken_over_and_given_back(family, fuse_encoders, unfuse_encoders, calls)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_layers_may_differ_in_heads_and_neurons(name, calls):
    model = ALL[name].base().eval()
    dsee.prune(model, dsee.Heads(0.5, score="weight"), dsee.Neurons(0.4, score="weight", scope="global"))
    assert in_one_call(sparse(model), ALL[name].logits, fuse_encoders, calls)


def split(name, kind="blocks"):
    """A model of a family with low-rank branches beside its sparse weights, on the kernels."""
    base = ALL[name].base().eval()
    dsee.prune(base, dsee.Blocks(0.6, score="weight"))
    tuned = get_peft_model(base, ALL[name].update(init_weights=False, target_modules="all-linear")).eval()
    with pytest.warns(UserWarning, match="stays beside the weight"):
        merged = dsee.merge(tuned, policy="split")
    register()
    return on_kernels(merged, kind)


@pytest.mark.parametrize("kind", ["blocks", "weights"])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_branches_of_a_split_merge_go_along(name, kind, calls):
    assert in_one_call(split(name, kind), ALL[name].logits, fuse_encoders, calls)


def test_a_branch_that_changes_is_seen(calls):
    model = split("bert")
    fused = fuse_encoders(model)
    with torch.no_grad():
        before = ALL["bert"].logits(model)
        model.bert.encoder.layer[1].output.dense.side_up.mul_(3.0)
        calls.clear()
        after = ALL["bert"].logits(model)
        assert calls
        assert not torch.allclose(after, before, atol=1e-3)
        unfuse_encoders(fused)
        close(after, ALL["bert"].logits(model))


def test_a_branch_that_is_trained_is_left_to_torch(calls):
    model = split("bert")
    assert fuse_encoders(model)
    before = model(**ALL["bert"].batch()).logits
    model.bert.encoder.layer[0].attention.self.query.side_low.requires_grad_(True)
    assert len(calls) == 2  # at fusing, and here
    after = model(**ALL["bert"].batch()).logits
    assert len(calls) == 2
    assert after.requires_grad
    close(after.detach(), before.detach())


def test_single_weights_fit_too(calls):
    model = sparse(tiny_bert().eval(), "weights", dsee.Weights(0.6, score="weight"))
    assert in_one_call(model, logits, fuse_encoders, calls)


def test_it_is_one_call_only_where_nothing_more_is_asked(fused, calls):
    model, before = fused
    layer = model.bert.encoder.layer[0]

    def called(expected):
        calls.clear()
        with torch.inference_mode():
            close(logits(model), before)
        assert len(calls) == expected

    called(1)
    # gradients are asked for
    calls.clear()
    close(model(**batch()).logits.detach(), before)
    assert not calls
    # somebody looks inside
    shapes = []
    hook = layer.intermediate.register_forward_hook(lambda _, args, out: shapes.append(out.shape[-1]))
    called(0)
    assert shapes
    hook.remove()
    # one linear is no longer on the kernels, or of another kind
    linear = layer.attention.output.dense
    from_kernels(linear)
    called(0)
    to_kernels(linear, "weights")
    called(0)
    from_kernels(linear)
    to_kernels(linear, "blocks")
    called(1)
    # another attention is asked for
    for other in ("sdpa", "eager"):
        model.set_attn_implementation(other)
        called(0)
    model.set_attn_implementation(own_attention.NAME)
    called(1)
    # so many threads have too little to share
    torch.set_num_threads(9)
    called(0)


def test_many_sentences_are_shared_among_threads(fused, calls):
    model, _ = fused
    many = batch(50, 16)
    with torch.inference_mode():
        alone = model(**many).logits
        torch.set_num_threads(2)
        assert torch.equal(model(**many).logits, alone)
    assert len(calls) == 2


def test_several_short_sentences_go_together_layer_by_layer(fused, calls, monkeypatch):
    model, _ = fused
    monkeypatch.setattr(encoder, "FULLEST", FULLEST)
    # where this machine's panels would be filled badly, and where they are full
    room = {n: library().encoder_room("blocks", 1, n, 1) for n in range(4, 16)}
    loose = next(n for n in room if 8 * room[n] > 9 * n)
    full = next(n for n in room if room[n] == n)
    with torch.inference_mode():
        model(**batch(4, loose))
        assert not calls
        model(**batch(1, loose))
        model(**batch(4, full))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["attention.output.dense.weight", "output.LayerNorm.bias", "intermediate.dense.bias"])
def test_what_changes_is_seen(fused, calls, name):
    model, before = fused
    with torch.inference_mode():
        logits(model)
    with torch.no_grad():
        model.bert.encoder.layer[1].get_parameter(name).mul_(-2.0)
    with torch.inference_mode():
        changed = logits(model)
        assert calls
        model.set_attn_implementation("sdpa")
        close(changed, logits(model))
    assert name.endswith("bias") or not torch.allclose(changed, before, rtol=1e-3)


def test_what_is_replaced_is_seen(fused, calls):
    model, before = fused
    layer = model.bert.encoder.layer[0]

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    with torch.inference_mode():
        logits(model)
        calls.clear()
        # an adapter put around a linear, say
        layer.attention.output.dense = Doubled(layer.attention.output.dense)
        assert not torch.allclose(logits(model), before, rtol=1e-3)
        assert not calls
        layer.attention.output.dense = layer.attention.output.dense.inner
        close(logits(model), before)
        assert calls
        # a layer less
        del model.bert.encoder.layer[1]
        shorter = logits(model)
        assert not torch.allclose(shorter, before, rtol=1e-3)
        model.set_attn_implementation("sdpa")
        close(shorter, logits(model))


def test_a_norm_of_other_numbers_is_seen(fused, calls):
    model, before = fused
    norm = model.bert.encoder.layer[0].output.LayerNorm
    with torch.inference_mode():
        norm.eps = 10.0
        changed = logits(model)
        assert calls
        assert not torch.allclose(changed, before, rtol=1e-3)
        model.set_attn_implementation("sdpa")
        close(changed, logits(model))
        model.set_attn_implementation(own_attention.NAME)
        norm.weight = None
        norm.bias = None
        calls.clear()
        logits(model)
        assert not calls


def test_all_hidden_states_are_still_given(fused):
    model, _ = fused
    with torch.inference_mode():
        found = model(**batch(), output_hidden_states=True).hidden_states
        model.set_attn_implementation("sdpa")
        expected = model(**batch(), output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == model.config.num_hidden_layers + 1
    for one, two in zip(found, expected, strict=True):
        close(one, two)


def test_hooks_that_only_look_when_asked_keep_nothing_apart(fused, calls):
    model, before = fused
    with torch.inference_mode():
        model(**batch(), output_hidden_states=True)
        # transformers leaves its hooks where they are
        assert any(module._forward_hooks for module in model.bert.encoder.modules())
        assert not calls
        close(logits(model), before)
        assert len(calls) == 1
        assert len(model(**batch(), output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1
        assert len(calls) == 1
        model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)
        close(logits(model), before)
    assert len(calls) == 1


def test_a_tuple_is_returned_where_it_is_asked_for(fused):
    model, before = fused
    with torch.inference_mode():
        close(model(**batch(), return_dict=False)[0], before)


def test_training_is_what_it_was():
    plain = sparse(tiny_bert())
    other = copy.deepcopy(plain).eval()
    assert fuse_encoders(other)
    for model in (plain, other):
        model.train()
        torch.manual_seed(0)
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_copies_and_pickles_stay_so(fused, calls):
    model, before = fused
    with torch.inference_mode():
        logits(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(again.bert.encoder, WholeEncoder)
        calls.clear()
        with torch.inference_mode():
            close(logits(again), before)
            assert calls
            # its own layers, and its own config
            again.bert.encoder.layer[0].output.dense.weight.mul_(-3.0)
            again.set_attn_implementation("sdpa")
            calls.clear()
            assert not torch.allclose(logits(again), before, rtol=1e-3)
            assert not calls
            close(logits(model), before)
            assert calls


def test_a_layer_that_computes_something_else_is_left_alone():
    model = sparse(tiny_bert().eval())
    first = model.bert.encoder.layer[0]

    class Louder(type(first)):
        def feed_forward_chunk(self, attention_output):
            return 2 * super().feed_forward_chunk(attention_output)

    first.__class__ = Louder
    assert not fuse_encoders(model)


def test_it_compiles(fused):
    model, before = fused
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        close(logits(compiled), before)


def test_optimize_takes_it_and_undoes_it(calls):
    model = tiny_bert(hidden_size=256, intermediate_size=1024).eval()
    dsee.prune(model, dsee.Blocks(0.9, score="weight"))
    with torch.inference_mode():
        before = logits(model)
        choices = dsee.optimize(model, batch())
        calls.clear()
        close(logits(model), before)
        # what is faster is this machine's business; what is said has to be what is done
        assert len(calls) == choices.encoders
        assert ("whole encoders in one call: 1" in str(choices)) == bool(choices.encoders)
        choices.undo()
        assert not any(isinstance(module, WholeEncoder) for module in model.modules())
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("rule", [dsee.Blocks(0.6, score="weight"), dsee.Weights(0.6, score="weight")], ids=repr)
def test_a_layer_without_zeros_does_not_keep_an_encoder_apart(rule, calls, monkeypatch):
    model = tiny_bert().eval()
    full = model.bert.encoder.layer[1].output.dense
    kept = full.weight.detach().clone()
    dsee.prune(model, rule)
    with torch.no_grad():
        full.weight.copy_(kept)

    def race(timed, rounds):
        # a dense product wins where there are no zeros, and the model the more the fewer calls it makes
        calls.clear()
        for call in timed.values():
            call()
        if "model" in timed:
            return {"model": 10.0 - len(calls)}
        return {
            name: 1.0 if name == "dense" and timed[name].func is full else 2.0 - 0.5 * (name != "dense")
            for name in timed
        }

    monkeypatch.setattr(optimize, "_race", race)
    with torch.inference_mode():
        before = logits(model)
        choices = dsee.optimize(model, batch(size=8, length=10))
        assert choices.encoders == 1
        chosen = {each.name: each.chosen for each in choices.layers}
        assert len({way for name, way in chosen.items() if ".layer." in name}) == 1
        calls.clear()
        close(logits(model), before)
    assert calls


def test_layers_agree_on_the_kind_that_is_fastest_for_all():
    model = tiny_bert()
    names = [name for name, module in model.named_modules() if type(module) in CLASSES]
    inside = [name for name in names if ".layer." in name]
    times = {"dense": 1.0, "blocks": 0.5, "weights": 0.6}
    choices = [Choice(name, "blocks", dict(times), {"blocks": 0.5, "weights": 0.5}) for name in names]
    assert all_alike(model, choices) is None
    choices[0] = Choice(choices[0].name, "dense", {**times, "blocks": 1.1}, {"blocks": 0.5, "weights": 0.5})
    found = all_alike(model, choices)
    assert {each.chosen for each in found if each.name in inside} == {"blocks"}
    # one that was not tried on any kernel
    choices[1] = Choice(choices[1].name, "dense", {"dense": 1.0}, {})
    assert all_alike(model, choices) is None
    assert all_alike(model, []) is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_other_layouts_have_nothing_to_agree_on(name):
    model = ALL[name].base()
    names = [name for name, module in model.named_modules() if type(module) in CLASSES]
    choices = [Choice(name, "dense", {"dense": 1.0, "blocks": 0.5}, {"blocks": 0.5}) for name in names]
    assert all_alike(model, choices) is None
