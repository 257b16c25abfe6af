"""The support by gradients: the scores against dense autograd, the deferred state, and what must not be left behind."""

import pytest
import torch
from peft import PeftModel
from transformers import AlbertConfig, AlbertForSequenceClassification

import dsee
from conftest import SIZES, adapted, batch, logits, tiny_bert
from dsee import support
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, tiny_gpt2

BATCHES = [batch(labels=True, seed=seed) for seed in range(3)]


def language_batches():
    return [{**b, "labels": b["input_ids"]} for b in (batch(seed=seed) for seed in range(2))]


def waiting(base=tiny_bert, **config):
    return adapted(base(), **({"support": "gradient", "init_weights": True} | config))


def dense_scores(model, names, batches, transposed=False):
    """Oracle: sum over batches of |dL/dW| with the weights themselves asked for gradients."""
    weights = {name: model.get_parameter(f"{name}.weight").requires_grad_() for name in names}
    scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for one in batches:
        gradients = torch.autograd.grad(model(**one).loss, list(weights.values()))
        for name, gradient in zip(names, gradients, strict=True):
            scores[name] += gradient.abs()
    return {name: score.T if transposed else score for name, score in scores.items()}


def assert_largest(found, scores):
    for name, flat in found.items():
        score = scores[name].reshape(-1)
        threshold = score.topk(flat.numel()).values[-1]
        # positions whose scores agree within rounding may change places
        assert bool((score[flat] >= threshold * (1 - 1e-4)).all()), name
        assert set(torch.nonzero(score > threshold * (1 + 1e-4)).reshape(-1).tolist()) <= set(flat.tolist()), name


def test_the_chosen_are_the_largest_of_dense_autograd():
    model = waiting(n_sparse=20)
    found = dsee.choose_support(model, calibration=BATCHES)
    assert len(found) == 6
    assert_largest(found, dense_scores(tiny_bert(), list(found), BATCHES))


def test_the_scores_equal_dense_autograd():
    base = tiny_bert()
    linears = {n: m for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and "classifier" not in n}
    base.requires_grad_(False)
    scores = support.accumulated(base, linears, BATCHES)
    expected = dense_scores(tiny_bert(), list(linears), BATCHES)
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].max()))


def test_conv1d_scores_are_in_out_in_orientation():
    model = adapted_gpt2(support="gradient", init_weights=True, n_sparse=30)
    found = dsee.choose_support(model, calibration=language_batches())
    assert_largest(found, dense_scores(tiny_gpt2(), list(found), language_batches(), transposed=True))


def test_a_linear_that_runs_several_times_gets_the_gradient_of_all_its_runs():
    # ALBERT's layers share their weights
    def tiny_albert():
        torch.manual_seed(0)
        config = AlbertConfig(**SIZES, embedding_size=16, vocab_size=100, max_position_embeddings=80, num_labels=3)
        return AlbertForSequenceClassification(config).eval()

    model = waiting(tiny_albert, target_modules=["query"], n_sparse=20)
    found = dsee.choose_support(model, calibration=BATCHES)
    assert_largest(found, dense_scores(tiny_albert(), list(found), BATCHES))


def test_a_low_rank_part_tuned_before_counts():
    # RoSA's order: warm up U V, then choose by the gradient at W + U V
    model = waiting(n_sparse=20)
    for _, layer in update_layers(model):
        layer.dsee_U["default"].weight.data.normal_(std=0.3)
    base = tiny_bert()
    for name, layer in update_layers(model):
        low = layer.dsee_U["default"].weight.data @ layer.dsee_V["default"].weight.data
        weight = base.get_parameter(name.removeprefix("base_model.model.") + ".weight")
        weight.data += layer.dsee_scaling["default"] * low
    found = dsee.choose_support(model, calibration=BATCHES)
    assert_largest(found, dense_scores(base, list(found), BATCHES))
    assert any(
        set(flat.tolist()) != set(dsee.choose_support(waiting(n_sparse=20), calibration=BATCHES)[name].tolist())
        for name, flat in found.items()
    )


@pytest.mark.parametrize("memory", [1, 4 * 32 * 32 * 2, 2**30])
def test_the_groups_do_not_matter(memory):
    expected = dsee.choose_support(waiting(), calibration=BATCHES)
    found = dsee.choose_support(waiting(), calibration=iter(BATCHES), memory=memory)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_more_dense_gradients_are_held_than_fit():
    linears = {str(i): torch.nn.Linear(10, 10) for i in range(7)}
    sizes = [len(group) for group in support.groups(linears, 4 * 300)]
    assert sizes == [3, 3, 1]
    assert [len(group) for group in support.groups(linears, 0)] == [1] * 7


@pytest.mark.parametrize("r", [0, 4])
def test_nothing_is_left_behind(r):
    model = waiting(r=r).train()
    model.base_model.model.bert.encoder.layer[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    dsee.choose_support(model, calibration=BATCHES)
    assert all(p.grad is None for p in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(
        p.requires_grad == state[name][0] and torch.equal(p, state[name][1]) for name, p in model.named_parameters()
    )
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("r", [0, 4])
def test_a_deferred_support_refuses_to_run_until_it_is_chosen(r):
    model = waiting(r=r)
    with pytest.raises(
        dsee.DseeError, match=r"support='gradient'.*Call dsee.choose_support\(model, calibration=batches"
    ):
        logits(model)
    dsee.choose_support(model, calibration=BATCHES)
    assert torch.equal(logits(model), logits(tiny_bert()))


def test_a_deferred_support_can_be_chosen_by_another_rule():
    model = waiting()
    dsee.choose_support(model, "magnitude")
    expected = adapted(tiny_bert(), support="magnitude", init_weights=True)
    for (_, layer), (_, other) in zip(update_layers(model), update_layers(expected), strict=True):
        assert torch.equal(layer.dsee_S["default"].indices, other.dsee_S["default"].indices)


def test_a_deferred_support_is_neither_saved_nor_merged_nor_cut(tmp_path):
    with pytest.raises(dsee.OrderError, match=r"query.*choose_support"):
        waiting().save_pretrained(tmp_path)
    with pytest.raises(dsee.DseeError, match="choose_support"):
        waiting().merge_and_unload()
    with pytest.raises(dsee.DseeError, match="choose_support"):
        dsee.prune(waiting(), dsee.Heads(1, score="weight"))


def test_after_a_failure_the_support_still_waits():
    model = waiting()
    with pytest.raises(dsee.InputError, match="no labels"):
        dsee.choose_support(model, calibration=[BATCHES[0], batch()])
    with pytest.raises(dsee.DseeError, match="not been chosen"):
        logits(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert dsee.choose_support(model, calibration=BATCHES)


def test_a_matrix_that_no_gradient_reaches_is_refused_by_name():
    model = adapted_gpt2(support="gradient", init_weights=True)
    ignored = [{**b, "labels": torch.full_like(b["input_ids"], -100)} for b in (batch(),)]
    with pytest.raises(dsee.InputError, match=r"c_attn: no calibration batch|NaN or infinite"):
        dsee.choose_support(model, calibration=ignored)


def test_gradients_keep_to_the_mask():
    base = tiny_bert()
    for name, module in base.named_modules():
        if name.endswith(("query", "value")):
            module.weight.data[::2] = 0.0
    model = adapted(base, support="gradient", init_weights=True, within_mask=True, n_sparse=30)
    found = dsee.choose_support(model, calibration=BATCHES)
    assert all(bool((flat // 32 % 2 == 1).all()) for flat in found.values())


def test_an_own_rule_may_look_at_gradients_and_weights(monkeypatch):
    from dsee.support import _registry

    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))

    @support.register_rule("snip")
    def snip(weight, n, rank, generator, *, gradient):
        return (weight * gradient).abs()

    model = waiting(support="snip", n_sparse=20)
    found = dsee.choose_support(model, calibration=BATCHES)
    base = tiny_bert()
    scores = dense_scores(base, list(found), BATCHES)
    assert_largest(found, {n: s * base.get_parameter(f"{n}.weight").detach().abs() for n, s in scores.items()})


def test_transformers_own_adapters_are_served():
    model = tiny_bert()
    model.add_adapter(
        dsee.DseeConfig(target_modules=["query", "value"], r=4, n_sparse=9, support="gradient"), adapter_name="default"
    )
    found = dsee.choose_support(model, calibration=BATCHES)
    expected = dsee.choose_support(waiting(), calibration=BATCHES)
    assert {name: flat.tolist() for name, flat in found.items()} == {n: flat.tolist() for n, flat in expected.items()}


def test_a_bf16_base_is_scored_in_fp32():
    base = tiny_bert().to(torch.bfloat16)
    model = adapted(base, support="gradient", init_weights=True, n_sparse=9)
    scores = dense_scores(tiny_bert(), list(dsee.choose_support(model, calibration=BATCHES)), BATCHES)
    for name, layer in update_layers(model):
        score = scores[name.removeprefix("base_model.model.")].reshape(-1)
        chosen = layer.dsee_S["default"].indices.long()
        # bf16 has eight bits: the chosen are large, if not the same
        assert float(score[chosen].mean()) > 0.7 * float(score.topk(9).values.mean())


def test_the_chosen_support_is_stored_and_loaded(tmp_path):
    model = waiting(task_type=None)
    found = dsee.choose_support(model, calibration=BATCHES)
    for _, layer in update_layers(model):
        layer.dsee_S["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    for name, layer in update_layers(loaded):
        assert layer.dsee_S["default"].indices.tolist() == found[name.removeprefix("base_model.model.")].tolist()
    with pytest.raises(dsee.OrderError, match="has been trained"):
        dsee.choose_support(loaded, "magnitude")
