"""Movement: the sums equal those of explicit straight-through scores, however the training is driven."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.errors import ArtifactError, InputError, OrderError
from dsee.masks import bare
from dsee.pruning import apply_masks, masks_for
from dsee.pruning.targets import mask_targets
from update.models import adapted_gpt2

EPS = torch.finfo(torch.float64).eps


class StraightThrough(torch.autograd.Function):
    """W times a mask of scores, whose gradient goes through to the scores as if the mask were they."""

    @staticmethod
    def forward(ctx, weight, scores, mask):
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return None, gradient * weight, None


class Explicit(nn.Module):
    """A linear in another's place whose scores are parameters; W_eff = W M + dW with dW as it stood."""

    def __init__(self, target, with_update):
        super().__init__()
        base = bare(target.linear)
        self.bias = base.bias
        self.weight = target.weight.to(base.weight.dtype).detach().clone()
        self.mask = torch.ones_like(self.weight) if target.mask is None else target.mask.to(self.weight)
        delta = target.delta
        self.delta = torch.zeros_like(self.weight) if delta is None else delta.to(self.weight).detach()
        self.with_update = with_update
        self.scores = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x):
        weight = StraightThrough.apply(self.weight, self.scores, self.mask)
        delta = (
            StraightThrough.apply(self.delta, self.scores, torch.ones_like(self.mask))
            if self.with_update
            else self.delta
        )
        return nn.functional.linear(x, weight + delta, self.bias)


def oracle(model, batches, with_update=False):
    """Minus the gradients of explicit scores, summed over batches: SGD of rate 1 on them."""
    model = copy.deepcopy(model)
    explicit = {}
    for target in mask_targets(model):
        parent, _, name = target.name.rpartition(".")
        explicit[target.name] = Explicit(target, with_update)
        setattr(model.get_base_model().get_submodule(parent), name, explicit[target.name])
    for inputs in batches:
        model(**inputs).loss.backward()
    return {name: -module.scores.grad for name, module in explicit.items()}


def still(model):
    """In train mode and without dropout, so that two models see the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def bert(**config):
    names = ["query", "value", "intermediate.dense"]
    return still(adapted(tiny_bert(), **({"target_modules": names} | config)).double())


def gpt2():
    return still(adapted_gpt2().double())


def language(size=3):
    ids = batch(size)["input_ids"]
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("with_update", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_sums_are_those_of_explicit_scores(kind, masked, with_update):
    model = bert() if kind == "bert" else gpt2()
    batches = [batch(labels=True, seed=s) if kind == "bert" else language(s + 2) for s in range(3)]
    if masked:
        apply_masks(model, masks_for(model, dsee.Weights(0.4, score="weight")))
    expected = oracle(model, batches, with_update)
    with dsee.Movement(model, with_update=with_update) as movement:
        for inputs in batches:
            model(**inputs).loss.backward()
        found = movement.scores()
        assert found.keys() == expected.keys()
        assert any(isinstance(bare(t.linear), Conv1D) for t in mask_targets(model)) == (kind == "gpt2")
        for name, value in expected.items():
            assert value.any(), name
            # S is kept in single precision
            torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_the_trained_parameters_get_the_gradients_they_would_get_anyway():
    one = bert()
    other = copy.deepcopy(one)
    inputs = batch(labels=True)
    with dsee.Movement(one):
        one(**inputs).loss.backward()
    other(**inputs).loss.backward()
    theirs = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[name].grad), name


def sums_of(model, run):
    with dsee.Movement(model) as movement:
        run(model)
        return {name: value.clone() for name, value in movement.scores().items()}


# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_makes_no_difference(reentrant):
    plain = sums_of(bert(), lambda model: model(**batch(labels=True)).loss.backward())
    model = bert()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = sums_of(model, lambda model: model(**batch(labels=True)).loss.backward())
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


def test_calibration_and_evaluation_do_not_count():
    model = bert()
    with dsee.Movement(model) as movement:
        masks_for(model, dsee.Weights(0.5, score="fisher"), [batch(labels=True)])
        model.eval()
        model(**batch(labels=True)).loss.backward()
        assert not any(value.any() for value in movement.scores().values())


def test_a_copy_of_the_model_has_sums_of_its_own():
    model = bert()
    with dsee.Movement(model) as movement:
        other = copy.deepcopy(model)
        other(**batch(labels=True)).loss.backward()
        assert not any(value.any() for value in movement.scores().values())
        assert any(bare(t.linear).dsee_movement.value.any() for t in mask_targets(other))


def test_bf16_and_infinite_gradients_leave_finite_sums():
    model = still(adapted(tiny_bert(), target_modules=["query", "value"]).to(torch.bfloat16))
    with dsee.Movement(model) as movement:
        model(**batch(labels=True)).loss.backward()
        (model(**batch(labels=True)).loss * float("inf")).backward()
        for value in movement.scores().values():
            assert value.dtype is torch.float32
            assert torch.isfinite(value).all()
            assert value.any()


@pytest.mark.parametrize(
    "rule",
    [dsee.Weights(0.5, score="movement"), dsee.Blocks(0.5, score="movement"), dsee.NofM(2, 4, score="movement")],
    ids=lambda rule: rule.label,
)
def test_the_masks_keep_the_highest_sums(rule):
    model = bert()
    with dsee.Movement(model) as movement:
        model(**batch(labels=True)).loss.backward()
        masks, sums = masks_for(model, rule), movement.scores()
    name = "bert.encoder.layer.1.intermediate.dense"
    mask, score = masks[name], sums[name]
    if isinstance(rule, dsee.NofM):
        kept = score.view(-1, 4).topk(2, dim=1).indices
        assert torch.equal(mask.view(-1, 4), torch.zeros(len(kept), 4, dtype=bool).scatter(1, kept, True))
        return
    rows = rule.grain[0]
    blocks = {n: s.view(s.shape[0] // rows, rows, -1).sum(1) for n, s in sums.items()}
    kept = {n: m.view(m.shape[0] // rows, rows, -1)[:, 0] for n, m in masks.items()}
    lowest_kept = min(float(blocks[n][kept[n]].min()) for n in blocks)
    # the floor of 5 % may keep blocks below
    assert sum(int((blocks[n][~kept[n]] > lowest_kept).sum()) for n in blocks) <= 0.05 * sum(
        b.numel() for b in blocks.values()
    )


def test_closing_leaves_nothing_behind():
    model = bert()
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    with dsee.Movement(model, targets=["query"]) as movement:
        assert set(movement.scores()) == {f"bert.encoder.layer.{i}.attention.self.query" for i in range(3)}
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert not any("dsee_movement" in vars(module) for module in model.modules())


def test_what_cannot_be_is_refused():
    model = bert()
    with pytest.raises(OrderError, match="nobody has followed"):
        masks_for(model, dsee.Weights(0.5, score="movement"))
    with dsee.Movement(model) as movement:
        with pytest.raises(OrderError, match="followed already"):
            dsee.Movement(model)
        with pytest.raises(OrderError, match="no step of tuning"):
            masks_for(model, dsee.Weights(0.5, score="movement"))
        with pytest.raises(ArtifactError, match="not those of this model"):
            movement.load({})
    with pytest.raises(InputError, match="is called 'qery'"):
        dsee.Movement(model, targets=["qery"])
