"""Scores of single weights, held against what dense autograd and plain arithmetic say."""

from copy import deepcopy

import pytest
import torch
from mask_models import data, shared, weights_of

import dsee
from conftest import adapted, batch, tiny_bert
from cut_families import build, inputs, task_type
from dsee.masks import oriented
from dsee.pruning import WeightScoreInput, masks_for, register_weight_score, weight_scores
from dsee.pruning.targets import mask_targets
from dsee.pruning.weight_scores import _WEIGHT_SCORES, check_weight_score
from dsee.update.layer import update_layers
from update.models import dense_update, scrambled, two_adapters

#: bert and distilbert with an update, a fused Conv1D, grouped and gated projections, a projection called twice.
MODELS = ["bert", "distilbert", "gpt2", "llama with biases", "deberta-v3", "t5 gated"]


def scored(model, score, calibration=None, seed=0):
    return check_weight_score(score)(WeightScoreInput(model, mask_targets(model), seed, calibration))


def with_update(name):
    base = build(name, task="SEQ_CLS") if name == "distilbert" else build(name)
    targets = {"gpt2": ["c_attn"], "llama with biases": ["q_proj", "up_proj"], "t5 gated": ["q", "wo"]}
    wanted = {"deberta-v3": ["key_proj", "dense"]} | targets
    return adapted(base, task_type=task_type(name), target_modules=wanted.get(name), support="random").double()


def effective(model):
    """W + dW of each target, float64, (out, in): the weights of the model that PEFT has merged."""
    plain = deepcopy(model).merge_and_unload()
    return {target.name: oriented(target.linear).double() for target in mask_targets(plain)}


def dense_gradients(model, name, batches):
    """dLoss/d(W + dW) for each batch, by autograd on a plain model that has W + dW as its weights."""
    plain = deepcopy(model).merge_and_unload().eval()
    wanted = {t.name: plain.get_submodule(t.name).weight.requires_grad_() for t in mask_targets(plain)}
    found = []
    for given in batches:
        loss = plain(**given).loss
        gradients = torch.autograd.grad(loss, list(wanted.values()))
        turned = [type(plain.get_submodule(n)).__name__ == "Conv1D" for n in wanted]
        found.append({n: g.T if t else g for n, g, t in zip(wanted, gradients, turned, strict=True)})
    return found


def close(found, expected, name):
    # the scores are fp32, made of a double model
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=1e-4, atol=1e-6 * scale, msg=lambda m: f"{name}: {m}"
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("score", ["fisher", "taylor"])
def test_gradients_are_those_of_the_dense_model(name, score):
    model = with_update(name)
    batches = [inputs(name, labels=True, seed=seed, size=3) for seed in range(3)]
    found = scored(model, score, batches)
    gradients = dense_gradients(model, name, batches)
    for target, weight in effective(model).items():
        if score == "fisher":
            expected = weight.square() * torch.stack([g[target].square() for g in gradients]).mean(0)
        else:
            expected = weight.abs() * torch.stack([g[target].abs() for g in gradients]).mean(0)
        assert expected.any()
        close(found[target], expected, target)


def test_gradients_need_no_update_and_no_trainable_weight():
    bare = tiny_bert().requires_grad_(False)
    found, expected = scored(bare, "fisher", data()), scored(tiny_bert(), "fisher", data())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(score.any() for score in found.values())


@pytest.mark.parametrize("score", ["fisher", "taylor", "wanda"])
def test_scoring_leaves_no_trace(score):
    model = adapted(tiny_bert(hidden_dropout_prob=0.5)).train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    asking = [n for n, p in model.named_parameters() if p.requires_grad]
    first, second = scored(model, score, data()), scored(model, score, data())
    assert all(torch.equal(first[name], second[name]) for name in first), "dropout was on"
    assert model.training
    assert asking == [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_while_scoring_leaves_no_trace_either():
    model = adapted(tiny_bert())
    asking = [n for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(dsee.InputError, match="no labels"):
        scored(model, "fisher", [batch()])
    assert asking == [n for n, p in model.named_parameters() if p.requires_grad]
    assert not any(m._forward_hooks for m in model.modules())


def test_wanda_is_the_weight_times_the_norm_of_what_it_reads():
    model, seen = scrambled(adapted(tiny_bert())).double(), {}
    targets = mask_targets(model)
    hooks = [
        t.linear.register_forward_pre_hook(lambda _, args, name=t.name: seen.setdefault(name, []).append(args[0]))
        for t in targets
    ]
    batches = [batch(seed=seed) for seed in range(2)]
    with torch.no_grad():
        for given in batches:
            model(**given)
    for hook in hooks:
        hook.remove()
    found = scored(model, "wanda", batches)
    for name, weight in effective(model).items():
        # padding is nobody's input
        rows = torch.cat([x[given["attention_mask"].bool()] for x, given in zip(seen[name], batches, strict=True)])
        close(found[name], weight.abs() * rows.norm(dim=0), name)


def test_update_is_the_scaled_update_where_there_is_one_and_the_weight_elsewhere():
    model = scrambled(adapted(tiny_bert(), alpha=100.0))
    found = scored(model, "update")
    for target in mask_targets(model):
        if hasattr(target.linear, "dsee_S"):
            close(found[target.name], dense_update(target.linear).abs(), target.name)
        else:
            assert torch.equal(found[target.name], target.weight.abs())


def test_weight_and_weight_plus_update():
    model = scrambled(adapted(tiny_bert()))
    weights, sums = weights_of(model), effective(model)
    assert all(torch.equal(score, weights[name].abs()) for name, score in scored(model, "weight").items())
    for name, score in scored(model, "weight+update").items():
        close(score, sums[name].abs(), name)


def test_update_sums_the_active_updates_only():
    model = two_adapters(tiny_bert())
    one = scored(model, "update")
    model.set_adapter("second")
    other = scored(model, "update")
    for _, layer in update_layers(model):
        layer.set_adapter(["default", "second"])
    both = scored(model, "update")
    name = "bert.encoder.layer.0.attention.self.query"
    layer = model.get_base_model().get_submodule(name)
    parts = [dense_update(layer, adapter) for adapter in ("default", "second")]
    for found, expected in ((one, parts[0]), (other, parts[1]), (both, sum(parts))):
        close(found[name], expected.abs(), name)


def test_random_is_seeded_for_each_matrix_by_itself():
    one, again, other = (scored(shared("bert"), "random", seed=seed) for seed in (0, 0, 1))
    names = list(one)
    assert all(torch.equal(one[n], again[n]) for n in names)
    assert not any(torch.equal(one[n], other[n]) for n in names)
    alone = check_weight_score("random")(
        WeightScoreInput(shared("bert"), mask_targets(shared("bert"), ["value"]), 0, None)
    )
    assert all(torch.equal(alone[n], one[n]) for n in alone)


def test_a_score_of_ones_own_is_one_function(monkeypatch):
    @register_weight_score("rows first")
    def rows_first(given):
        return {t.name: torch.arange(t.shape[0])[:, None].expand(t.shape) for t in given.targets}

    try:
        mask = masks_for(shared("bert"), dsee.Weights(0.5, score="rows first", scope="layer"))
        assert "rows first" in weight_scores()
    finally:
        del _WEIGHT_SCORES["rows first"]
    for kept in mask.values():
        half = kept.shape[0] // 2
        assert not kept[:half].any()
        assert kept[half:].all()


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda given: {}, "gave no values for bert.encoder.layer.0"),
        (lambda given: {t.name: torch.rand(3) for t in given.targets}, r"gave shape \(3,\)"),
        (lambda given: {t.name: torch.full(t.shape, float("nan")) for t in given.targets}, "NaN or infinite"),
    ],
)
def test_a_score_that_is_none_is_refused(monkeypatch, score, message):
    monkeypatch.setitem(_WEIGHT_SCORES, "broken", score)
    with pytest.raises(dsee.InputError, match=message):
        masks_for(shared("bert"), dsee.Weights(0.5, score="broken"))


@pytest.mark.parametrize("score", ["fisher", "taylor", "wanda"])
def test_data_is_asked_for_by_name(score):
    with pytest.raises(dsee.InputError, match=f"score='{score}' looks at data: pass calibration="):
        masks_for(shared("bert"), dsee.Weights(0.5, score=score))
    with pytest.raises(dsee.InputError, match="calibration set is empty"):
        masks_for(shared("bert"), dsee.Weights(0.5, score=score), [])


def test_a_matrix_that_no_batch_uses_is_named():
    model = adapted(build("t5"), task_type="SEQ_2_SEQ_LM", target_modules=["q"], support="random")
    model.get_base_model().decoder.block[0].layer[2].forward = lambda hidden, *a, **k: hidden
    with pytest.raises(dsee.InputError, match=r"decoder\.block\.0\.layer\.2.* is used by no calibration batch"):
        scored(model, "fisher", [inputs("t5", labels=True)])


@pytest.mark.parametrize("rule", [dsee.Weights(0.5), dsee.Blocks(0.5), dsee.NofM(2, 4)])
def test_an_update_that_is_not_there_or_zero_ranks_nothing(rule):
    with pytest.raises(dsee.OrderError, match="none of the matrices carries one"):
        masks_for(tiny_bert(), rule)
    with pytest.raises(dsee.OrderError, match="still zero"):
        masks_for(adapted(tiny_bert(), init_weights=True), rule)
