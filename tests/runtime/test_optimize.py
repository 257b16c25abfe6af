"""``dsee.optimize``: the fastest way for each layer, and the same model."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

import dsee
from behaviours.families import ALL
from conftest import adapted, batch, logits, tiny_bert
from dsee.errors import InputError, OrderError
from dsee.kernels import library, on_kernels
from dsee.runtime import optimize as module
from dsee.runtime.activations import name_of

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")


@pytest.fixture
def kernels_win(monkeypatch):
    """Tiny layers are faster densely; what is tested here is what happens once the clock has spoken."""

    def race(calls, rounds):
        for call in calls.values():
            call()
        return {name: 1.0 if name in ("dense", "model") else 0.4 + 0.1 * (name == "weights") for name in calls}

    monkeypatch.setattr(module, "_race", race)


def pruned(rule=None, **sizes):
    model = tiny_bert(**sizes)
    dsee.prune(model, rule or dsee.Blocks(0.6, score="weight"))
    return model


@needs_kernels
@pytest.mark.parametrize(
    "rule",
    [dsee.Blocks(0.6, score="weight"), dsee.Weights(0.9, score="weight"), dsee.NofM(2, 4, score="weight")],
    ids=lambda rule: type(rule).__name__,
)
def test_logits_stay(kernels_win, rule):
    model = pruned(rule)
    before, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    choices = dsee.optimize(model, batch())
    assert len(on_kernels(model)) == 18
    # two of four kept in each row leave hardly any block of four rows empty
    assert {layer.chosen for layer in choices.layers} == {"weights" if type(rule) is dsee.NofM else "blocks", "dense"}
    torch.testing.assert_close(logits(model), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    choices.undo()
    assert on_kernels(model) == {}
    assert torch.equal(logits(model), before)


@needs_kernels
@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits(kernels_win, family):
    model, inputs = family.base().eval(), family.batch()
    dsee.prune(model, dsee.Blocks(0.5, score="weight"))
    before = family.logits(model)
    choices = dsee.optimize(model, inputs)
    assert on_kernels(model)
    torch.testing.assert_close(family.logits(model), before, rtol=1e-4, atol=1e-5)
    choices.undo()
    assert torch.equal(family.logits(model), before)


@needs_kernels
def test_activations_are_fused_where_the_map_names_them(kernels_win):
    model = pruned()
    original = model.bert.encoder.layer[0].intermediate.intermediate_act_fn
    choices = dsee.optimize(model, batch())
    fused = [layer.name for layer in choices.layers if layer.activation == "gelu"]
    assert fused == [f"bert.encoder.layer.{i}.intermediate.dense" for i in range(3)]
    assert isinstance(model.bert.encoder.layer[0].intermediate.intermediate_act_fn, nn.Identity)
    choices.undo()
    assert model.bert.encoder.layer[0].intermediate.intermediate_act_fn is original


def test_activations_are_known_by_their_values():
    from transformers.activations import ACT2FN

    assert name_of(ACT2FN["gelu"]) == "gelu"
    assert name_of(ACT2FN["gelu_new"]) == "gelu_tanh"
    assert name_of(ACT2FN["gelu_pytorch_tanh"]) == "gelu_tanh"
    assert name_of(ACT2FN["silu"]) == "silu"
    assert name_of(ACT2FN["relu"]) == "relu"
    assert name_of(ACT2FN["quick_gelu"]) is None
    assert name_of(torch.tanh) is None


@needs_kernels
def test_gradients_flow_as_before(kernels_win):
    model = pruned().train()
    inputs = batch(labels=True)
    torch.manual_seed(0)
    model(**inputs).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    dsee.optimize(model, batch())
    assert model.training
    torch.manual_seed(0)
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter.grad, before[name])


@needs_kernels
def test_an_update_beside_a_sparse_base_stays(kernels_win):
    model = adapted(pruned())
    before = logits(model)
    choices = dsee.optimize(model, batch())
    assert on_kernels(model)
    torch.testing.assert_close(logits(model), before)
    # the update comes between a projection and what follows it; nothing may be fused there
    wrapped = adapted(pruned(), target_modules=["dense"])
    want = logits(wrapped)
    other = dsee.optimize(wrapped, batch())
    assert all(layer.activation is None for layer in other.layers)
    torch.testing.assert_close(logits(wrapped), want)
    choices.undo()


@needs_kernels
@pytest.mark.parametrize("kind", ["blocks", "weights"])
def test_branches_of_a_split_merge_run_on_the_kernels(kernels_win, kind):
    rule = dsee.Blocks(0.6, score="weight") if kind == "blocks" else dsee.NofM(2, 4, score="weight")
    with pytest.warns(UserWarning, match="stays beside the weight"):
        model = dsee.merge(adapted(pruned(rule), target_modules=["query", "dense"]), policy="split")
    before = logits(model)
    choices = dsee.optimize(model, batch())
    found = on_kernels(model)
    assert {type(layer).__name__ for layer in found.values()} == {"SparseLinear", "SparseSideLinear"}
    assert {layer._dsee_sparse.kind for layer in found.values()} == {kind}
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert layer._dsee_sparse.activation == "gelu"
    with torch.no_grad():
        layer.side_up.mul_(2.0)
        x = torch.randn(2, 3, 32)
        changed = layer(x)
        choices.undo()
        torch.testing.assert_close(changed, nn.functional.gelu(layer(x)), rtol=1e-4, atol=1e-5)
        layer.side_up.div_(2.0)
    assert torch.equal(logits(model), before)


@needs_kernels
def test_a_branch_of_conv1d_too(kernels_win):
    family = ALL["gpt2"]
    model = family.base().eval()
    dsee.prune(model, dsee.Blocks(0.5, score="weight"))
    tuned = get_peft_model(model, family.update(init_weights=False)).eval()
    with pytest.warns(UserWarning, match="stays beside the weight"):
        merged = dsee.merge(tuned, policy="split")
    before = family.logits(merged)
    dsee.optimize(merged, family.batch())
    assert "SparseSideConv1D" in {type(layer).__name__ for layer in on_kernels(merged).values()}
    torch.testing.assert_close(family.logits(merged), before, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_an_optimized_model_is_saved_and_loaded_as_any_other(kernels_win, tmp_path):
    model = pruned()
    before = logits(model)
    dsee.save(model, tmp_path / "plain")
    dsee.optimize(model, batch())
    dsee.save(model, tmp_path / "fast")
    for name in ("model.safetensors", "masks.safetensors", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "fast" / name).read_bytes()
    loaded = dsee.load(tmp_path / "fast", optimize=True)
    assert on_kernels(loaded)
    torch.testing.assert_close(logits(loaded), before)


@needs_kernels
def test_steps_that_change_layers_ask_for_undo_first(kernels_win):
    model = pruned()
    choices = dsee.optimize(model, batch())
    with pytest.raises(OrderError, match="already"):
        dsee.optimize(model, batch())
    with pytest.raises(OrderError, match=r"prune: bert.* runs on the sparse kernels.*undo"):
        dsee.prune(model, dsee.Heads(0.5, score="weight"))
    choices.undo()
    dsee.prune(model, dsee.Blocks(0.9, score="weight"))
    both = adapted(pruned())
    dsee.optimize(both, batch())
    with pytest.raises(OrderError, match=r"merge: .* runs on the sparse kernels"):
        dsee.merge(both)


@needs_kernels
def test_a_model_without_zeros_stays_dense_on_a_long_input(kernels_win):
    model = tiny_bert()
    # 1,040 tokens
    choices = dsee.optimize(model, batch(26, 40))
    assert on_kernels(model) == {}
    assert {layer.chosen for layer in choices.layers} == {"dense"}
    assert choices.summary.startswith("0 of 20 linear layers")


@needs_kernels
@pytest.mark.parametrize(("name", "tried"), [("bert", True), ("distilbert", True), ("gpt2", False), ("llama", False)])
def test_an_encoder_without_zeros_is_tried_on_a_short_input(kernels_win, name, tried):
    model = ALL[name].base().eval()
    with torch.no_grad():
        before = ALL[name].logits(model)
        choices = dsee.optimize(model, ALL[name].batch())
        inside = [layer for layer in choices.layers if ".layer." in layer.name or ".layers." in layer.name]
        if tried:
            assert {layer.chosen for layer in inside} == {"blocks"}
            assert all(set(layer.times_ms) == {"dense", "blocks"} for layer in inside)
            assert {layer.chosen for layer in choices.layers if layer not in inside} <= {"dense"}
        else:
            assert on_kernels(model) == {}
        torch.testing.assert_close(ALL[name].logits(model), before, rtol=1e-4, atol=1e-5)
        choices.undo()
        assert torch.equal(ALL[name].logits(model), before)


@needs_kernels
def test_if_the_whole_model_gains_nothing_all_is_undone(monkeypatch):
    def race(calls, rounds):
        # each layer wins alone, the whole loses
        race.whole += "model" in calls
        return {name: {"dense": 1.0, "model": float(race.whole)}.get(name, 0.5) for name in calls}

    race.whole = 0
    monkeypatch.setattr(module, "_race", race)
    model = pruned()
    choices = dsee.optimize(model, batch())
    assert on_kernels(model) == {}
    assert choices.gain == 1.0
    assert {layer.chosen for layer in choices.layers} == {"dense"}


@needs_kernels
def test_a_layer_keeps_the_dense_way_unless_it_gains_three_percent(monkeypatch):
    monkeypatch.setattr(
        module, "_race", lambda calls, rounds: {name: 1.0 if name == "dense" else 0.98 for name in calls}
    )
    model = pruned()
    assert {layer.chosen for layer in dsee.optimize(model, batch()).layers} == {"dense"}


@needs_kernels
def test_the_clock_is_asked_for_real():
    """A layer of a size that matters, nearly empty: nothing but a broken clock keeps it dense."""
    model = tiny_bert(hidden_size=256, intermediate_size=1024)
    dsee.prune(model, dsee.Blocks(0.95, score="weight"))
    choices = dsee.optimize(model, batch(8, 64))
    assert choices.tokens == 512
    # which kind is for the clock to say: single weights are close where so few are left
    assert sum(layer.chosen in ("blocks", "weights") for layer in choices.layers) >= 9
    assert all(layer.times_ms["blocks"] > 0 for layer in choices.layers if layer.chosen == "blocks")
    assert "stored" in str(choices)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"rounds": 0}, "rounds=0"), ({"sample": {"ids": torch.zeros(1, 2).long()}}, "cannot take this sample")],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        dsee.optimize(pruned(), **arguments)


CODE = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from conftest import batch, logits, tiny_bert
import dsee
from dsee.kernels import library, pack, sparse_linear
from dsee.kernels.linear import to_kernels
model = tiny_bert()
dsee.prune(model, dsee.Blocks(0.6, score="weight"))
before = logits(model)
choices = dsee.optimize(model, batch())
weight = torch.randn(8, 12)
x = torch.randn(3, 12)
print(json.dumps({{
    "library": library() is not None,
    "said": choices.summary,
    "same": torch.equal(before, logits(model)),
    "product": torch.allclose(sparse_linear(x, pack(weight), activation="relu"), (x @ weight.T).relu(), atol=1e-6),
}}))
"""


@pytest.mark.parametrize("setting", ["off", "baseline"])
def test_without_kernels_and_with_the_plainest_ones(setting):
    if setting == "baseline" and library() is None:
        pytest.skip("the kernels are not compiled here")
    environment = os.environ | {"DSEE_KERNELS": setting}
    code = CODE.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["library"] == (setting == "baseline")
    assert found["same"] or setting == "baseline"
    assert found["product"]
    assert ("switched off" in found["said"]) == (setting == "off")


def test_an_unknown_instruction_set_is_named(monkeypatch):
    if library() is None:
        pytest.skip("the kernels are not compiled here")

    import dsee.kernels.compile as build
    from dsee.kernels.library import Library

    with pytest.raises(InputError, match="Did you mean 'baseline'"):
        Library(Path(build.__file__).with_name(build.LIBRARY), "baselin")


@pytest.fixture
def attention_wins(monkeypatch):
    """The clock prefers the kernels' attention."""

    def whole(model, inputs, rounds):
        model(**inputs)
        return 0.5 if model.config._attn_implementation == "dsee" else 1.0

    monkeypatch.setattr(module, "_whole", whole)


def padded(model, inputs):
    """The last three tokens of the first row are padding."""
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, -3:] = 0
    return inputs | {"attention_mask": mask}


@needs_kernels
@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits_with_our_attention(attention_wins, family):
    model, inputs = family.base().eval(), family.batch()
    with torch.no_grad():
        plain, masked = model(**inputs).logits, model(**padded(model, inputs)).logits
    choices = dsee.optimize(model, inputs)
    able = model.config._attn_implementation == "dsee"
    assert choices.attention == ("dsee" if able else "")
    # DeBERTa has an attention of its own; T5's goes through the registry, and with its position bias on to "sdpa"
    assert able == (model.config.model_type != "deberta-v2")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(**padded(model, inputs)).logits, masked, rtol=1e-4, atol=1e-5)
    choices.undo()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


@needs_kernels
def test_our_attention_is_asked_and_leaves_training_and_files_alone(attention_wins, monkeypatch, tmp_path):
    from dsee.runtime import own_attention

    called = []
    real = own_attention.attention
    monkeypatch.setattr(own_attention, "attention", lambda *a, **k: called.append(1) or real(*a, **k))
    model = tiny_bert()
    before = logits(model)
    choices = dsee.optimize(model, batch())
    assert "attention: dsee" in str(choices)
    # dense projections are not the kernels'
    assert choices.attentions == 0
    called.clear()
    torch.testing.assert_close(logits(model), before)
    assert len(called) == model.config.num_hidden_layers
    called.clear()
    model.train()
    model(**batch()).logits.sum().backward()
    assert not called
    model.eval()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad is not None
    with pytest.raises(OrderError, match="undo"):
        dsee.optimize(model, batch())
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@needs_kernels
@pytest.mark.parametrize("wins", [True, False])
def test_query_key_value_and_attention_become_one_call_where_that_is_faster(kernels_win, monkeypatch, wins):
    def whole(model, inputs, rounds):
        model(**inputs)
        return 0.5 if (model.config._attn_implementation == "dsee") == wins else 1.0

    monkeypatch.setattr(module, "_whole", whole)
    model = pruned()
    classes, before = [type(m) for m in model.modules()], logits(model)
    choices = dsee.optimize(model, batch())
    assert choices.attentions == (model.config.num_hidden_layers if wins else 0)
    assert ("query, key, value and attention in one call" in str(choices)) == wins
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    choices.undo()
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(logits(model), before)


@needs_kernels
@pytest.mark.parametrize(("key", "agreed"), [(1.2, "blocks"), (4.0, "dense")])
def test_query_key_and_value_go_one_way(monkeypatch, key, agreed):
    """The clock says that blocks win for queries and values, and slow down keys."""
    turns = iter([0.5, key, 0.5] * 9)

    def race(calls, rounds):
        if set(calls) != {"dense", "blocks", "weights"}:
            return dict.fromkeys(calls, 1.0)
        blocks = next(turns) if calls["dense"].func.weight.shape[0] == calls["dense"].func.weight.shape[1] else 1.0
        return {"dense": 1.0, "blocks": blocks, "weights": 2.0}

    monkeypatch.setattr(module, "_race", race)
    model = pruned()
    for layer in model.bert.encoder.layer:
        # the joining projection is as square as the three and is not looked at here
        layer.attention.output.dense.weight.data.fill_(1.0)
    before = logits(model)
    choices = dsee.optimize(model, batch())
    found = {c.name.rsplit(".", 1)[1]: c.chosen for c in choices.layers if ".self." in c.name}
    assert found == dict.fromkeys(("query", "key", "value"), agreed)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    choices.undo()
    assert torch.equal(logits(model), before)


@needs_kernels
def test_a_race_goes_on_while_times_fall(monkeypatch):
    now, took = [0.0], {"a": iter([9.0, 5.0, 5.0, 3.0, 1.0, *[2.0] * 99]), "b": iter([9.0, *[4.0] * 99])}
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    calls = []

    def call(name):
        calls.append(name)
        now[0] += next(took[name])

    # the first round warms up; the fourth brings the last better time, and three more bring none
    assert module._race({name: partial(call, name) for name in took}, 3) == {"a": 1e3, "b": 4e3}
    assert len(calls) == 2 * 8


@needs_kernels
def test_generation_is_the_same_with_our_attention(attention_wins):
    family = ALL["llama"]
    model = family.base().eval()
    if not hasattr(model, "lm_head"):
        from transformers import LlamaForCausalLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(model.config).eval()
    ids = family.batch()["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        written = model.generate(ids, max_new_tokens=6, do_sample=False)
        dsee.optimize(model, {"input_ids": ids})
        assert model.config._attn_implementation == "dsee"
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), written)


@needs_kernels
def test_8_bits_only_on_request_and_with_the_deviation(monkeypatch):
    if not library().int8:
        pytest.skip("this instruction set has no 8-bit products")

    def race(calls, rounds):
        for call in calls.values():
            call()
        return {name: {"int8": 0.3, "dense": 1.0, "model": 1.0}.get(name, 0.5) for name in calls}

    monkeypatch.setattr(module, "_race", race)
    model = tiny_bert()
    before = logits(model)
    assert not on_kernels(model)
    plain = dsee.optimize(model, batch(26, 40))
    assert {layer.chosen for layer in plain.layers} == {"dense"}
    assert plain.deviation == 0.0
    plain.undo()
    choices = dsee.optimize(model, batch(), int8=True)
    assert {layer.chosen for layer in choices.layers} == {"int8"}
    with torch.no_grad():
        found = model(**batch()).logits
    assert choices.deviation == pytest.approx(float((found - before).norm() / before.norm()), rel=1e-4)
    assert 0 < choices.deviation < 0.2
    assert "as int8: outputs differ by" in choices.summary
    choices.undo()
    assert torch.equal(logits(model), before)
