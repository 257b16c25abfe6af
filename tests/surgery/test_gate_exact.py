"""Gates start at 1 without a trace, and vanish into the weights without one."""

from copy import deepcopy

import pytest
import torch
from mask_oracle import ALL_LINEARS, TOLERANCE, strong, zeroed

import dsee
from conftest import adapted, batch, logits, tiny_bert, tiny_distilbert
from dsee.architectures import layers
from dsee.pruning import plan_for
from dsee.pruning.gates import gate_of, gate_parameters, gate_values, has_gates
from update.models import adapted_gpt2, two_adapters


def gated(model, seed=0, **units):
    """The model with gates of all sizes and both signs."""
    dsee.add_gates(model, **units)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gate_parameters(model):
            gate.copy_(torch.randn(gate.shape, generator=generator))
    return model


def assert_same(one, other, dtype=torch.float32):
    assert one.dtype == other.dtype == dtype
    torch.testing.assert_close(one, other, rtol=0.0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("wrapped", [False, True])
def test_fresh_gates_change_no_logit(family, wrapped):
    model = strong(family(), target_modules=ALL_LINEARS) if wrapped else family()
    before = logits(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dsee.add_gates(model)
    assert torch.equal(logits(model), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained + 3 * (4 + 40)


def test_a_gate_multiplies_what_its_head_or_neuron_hands_on(family):
    model = strong(family(), target_modules=ALL_LINEARS)
    plain = deepcopy(model)
    gated(model)
    values = gate_values(model)
    for view in layers(plain):
        for part, unit in (("output", "heads"), ("ffn_out", "neurons")):
            factor = values[f"{view.index}.{unit}"].repeat_interleave(view.head_size if unit == "heads" else 1)
            view.part(part).register_forward_pre_hook(lambda _, args, factor=factor: (args[0] * factor, *args[1:]))
    assert_same(logits(model), logits(plain))
    assert (logits(model) - logits(family())).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrapped", [False, True])
def test_folding_changes_no_logit(family, dtype, wrapped):
    model = strong(family(), target_modules=ALL_LINEARS).to(dtype) if wrapped else family().to(dtype)
    before = logits(gated(model))
    dsee.fold_gates(model)
    assert not has_gates(model)
    assert not [name for name, _ in model.named_parameters() if name.endswith("gate")]
    assert_same(logits(model), before, dtype)


def test_folding_reaches_every_adapter_and_the_base_alone():
    model = gated(two_adapters(tiny_bert(), target_modules=["query", "output.dense"]))

    def answers():
        found = []
        for name in ("default", "second"):
            model.set_adapter(name)
            found.append(logits(model))
        with model.disable_adapter():
            found.append(logits(model))
        return found

    before = answers()
    assert (before[0] - before[1]).abs().max() > 1e-2
    dsee.fold_gates(model)
    for now, then in zip(answers(), before, strict=True):
        assert_same(now, then)


def test_folding_into_a_conv1d():
    model = adapted_gpt2(target_modules=["c_proj"])
    block = model.get_base_model().transformer.h[0]
    inputs = batch()
    for linear, size in ((block.attn.c_proj, 4), (block.mlp.c_proj, 128)):
        from dsee.pruning.gates import _add

        _add(linear, torch.randn(size, generator=torch.Generator().manual_seed(size)))
    before = logits(model, inputs)
    dsee.fold_gates(model)
    # logits of a language model with weights of 0.2 are of order ten
    torch.testing.assert_close(logits(model, inputs), before, rtol=1e-5, atol=1e-4)
    assert not has_gates(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pruning_by_gates_equals_the_gated_model_with_the_rest_zeroed(family, dtype):
    model = gated(strong(family(), target_modules=ALL_LINEARS).to(dtype))
    oracle = deepcopy(model)
    report = dsee.prune(model, dsee.Heads(0.5, score="gate"), dsee.Neurons(0.4, score="gate", scope="global"))
    assert not has_gates(model)
    expected = logits(zeroed(zeroed(oracle, report.plans[0]), report.plans[1]))
    assert (expected - logits(oracle)).abs().max() > 1e-2
    assert_same(logits(model), expected, dtype)


def test_the_smallest_gates_go_whatever_their_sign():
    model = tiny_bert()
    dsee.add_gates(model)
    view = layers(model)[0]
    with torch.no_grad():
        gate_of(view, "heads").copy_(torch.tensor([-2.0, 0.5, -0.1, 1.0]))
    assert plan_for(model, dsee.Heads(2, score="gate"))[0].heads == (1, 2)
    one = dsee.Heads(2, score="gate", scope="global")
    assert [plan.heads for plan in plan_for(model, one)] == [(1, 2), (), ()]


def test_pruning_by_another_score_folds_gates_too():
    model = gated(tiny_bert())
    oracle = deepcopy(model)
    report = dsee.prune(model, dsee.Neurons(8))
    assert not has_gates(model)
    assert_same(logits(model), logits(zeroed(oracle, report.plans[0])))


def test_merging_folds_gates():
    model = gated(strong(tiny_distilbert(), target_modules=ALL_LINEARS))
    before = logits(model)
    small = dsee.merge(model)
    assert not has_gates(small)
    assert_same(logits(small), before)


def test_gates_go_on_one_unit_alone():
    model = tiny_bert()
    dsee.add_gates(model, heads=False)
    assert sorted(gate_values(model)) == ["0.neurons", "1.neurons", "2.neurons"]
    dsee.fold_gates(model)
    dsee.add_gates(model, neurons=False)
    assert sorted(gate_values(model)) == ["0.heads", "1.heads", "2.heads"]


def test_a_deep_copy_has_gates_of_its_own():
    model = gated(tiny_bert())
    before = logits(model)
    copy = deepcopy(model)
    with torch.no_grad():
        for gate in gate_parameters(copy):
            gate.zero_()
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(copy), before)


def test_gates_of_a_half_precision_model_keep_small_steps():
    model = tiny_bert().to(torch.bfloat16)
    dsee.add_gates(model)
    assert {gate.dtype for gate in gate_parameters(model)} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    dsee.fold_gates(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_fold_gates_is_in_the_history():
    model = gated(tiny_bert())
    dsee.fold_gates(model)
    assert [step["step"] for step in dsee.history(model)] == ["fold_gates"]


def test_gates_work_compiled():
    model = gated(adapted(tiny_bert()))
    compiled = torch.compile(model, backend="aot_eager")
    try:
        assert_same(logits(compiled), logits(model))
    finally:
        torch.compiler.reset()
