"""dsee.prune with rules for weights: what it does, what it says, and which orders it refuses."""

import re

import pytest
import torch

import dsee
from conftest import adapted, batch, logits, tiny_bert
from cut_families import HEADED, answer, build, task_type
from dsee.architectures import layers
from dsee.masks import bare, oriented
from dsee.pruning import get_mask, masked_linears, masks_for, set_mask
from dsee.pruning.blocks import block_sums
from dsee.pruning.targets import mask_targets
from update.models import scrambled, train_step

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
WEIGHT = {"score": "weight"}


def share(model):
    masks = [get_mask(linear) for linear in masked_linears(model).values()]
    return 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


def test_the_report_tells_zeros_before_and_after_by_matrix():
    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense.weight.data[:, :2] = 0.0
    report = dsee.prune(model, dsee.Weights(0.5, scope="layer", **WEIGHT))
    assert list(report.zeros) == [target.name for target in mask_targets(model)]
    found = report.zeros["bert.encoder.layer.0.output.dense"]
    assert (found.before, found.after, found.weights) == (64, 640, 1280)
    assert report.plans == ()
    assert str(report) == "zeros: 0.3% -> 50.0% of 19,968 weights in 18 matrices (by matrix: 50.0% to 50.0%)"


def test_cuts_come_first_and_masks_fall_on_what_is_left():
    model = adapted(tiny_bert())
    report = dsee.prune(model, dsee.Weights(0.5), dsee.Heads(1), dsee.Neurons(0.4))
    assert report.after == {"heads": [3] * 3, "neurons": [24] * 3}
    assert all(get_mask(linear).shape == oriented(linear).shape for linear in masked_linears(model).values())
    assert sum(m.weights for m in report.zeros.values()) == 3 * (4 * 24 * 32 + 2 * 24 * 32)
    assert share(model) == 0.5
    text = str(report).splitlines()
    assert [line.split(":")[0] for line in text] == ["heads", "neurons", "zeros"]


def test_the_history_tells_cuts_and_masks_in_order():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Blocks(0.5, shape=(2, 1)), dsee.Heads(1))
    cut, mask = dsee.history(model)
    assert [facts["rule"] for facts in cut["rules"]] == ["heads"]
    assert mask["rules"] == [dsee.Blocks(0.5, shape=(2, 1)).facts()]
    assert (mask["zeros_before"], mask["zeros_after"]) == (0.0, 0.5)
    assert mask["before"] == mask["after"] == cut["after"]


def test_repeating_the_history_gives_the_same_masks():
    from dsee.pruning.mask_order import rule_of

    model, again = adapted(tiny_bert()), adapted(tiny_bert())
    dsee.prune(model, dsee.Weights(0.3))
    dsee.prune(model, dsee.Weights(0.6, score="random", scope="layer", seed=4))
    for step in dsee.history(model):
        dsee.prune(again, *[rule_of(facts) for facts in step["rules"]])
    masks = [{n: get_mask(linear) for n, linear in masked_linears(m).items()} for m in (model, again)]
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[0])
    assert dsee.history(again) == dsee.history(model)


@pytest.mark.parametrize("when", ["before tuning", "while tuning", "after tuning"])
def test_it_works_before_while_and_after_tuning(when):
    base = tiny_bert()
    rule = dsee.Weights(0.5, score="fisher")
    batches = [batch(labels=True)]
    if when == "before tuning":
        dsee.prune(base, rule, calibration=batches)
    model = adapted(base, init_weights=True)
    optimizer = train_step(model)
    if when == "while tuning":
        dsee.prune(model, rule, calibration=batches)
    train_step(model, optimizer)
    if when == "after tuning":
        dsee.prune(model, rule, calibration=batches)
    masked = masked_linears(model)
    assert len(masked) == 18
    assert share(model) == 0.5
    for linear in masked.values():
        assert torch.equal(oriented(linear) != 0, get_mask(linear))


def test_the_optimizer_made_before_still_fits():
    model = adapted(tiny_bert())
    before = {id(p) for p in model.parameters()}
    dsee.prune(model, dsee.Weights(0.5))
    assert {id(p) for p in model.parameters()} == before


def test_one_mask_serves_every_adapter_and_the_bare_base():
    model = adapted(tiny_bert())
    model.add_adapter("second", dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=3, init_weights=False))
    dsee.prune(model, dsee.Weights(0.5, **WEIGHT))
    bits = {name: get_mask(linear) for name, linear in masked_linears(model).items()}
    model.set_adapter("second")
    with model.disable_adapter():
        assert all(torch.equal(get_mask(linear), bits[name]) for name, linear in masked_linears(model).items())
    model.delete_adapter("default")
    assert set(masked_linears(model)) == set(bits)


def test_pruning_again_grows_the_mask():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Weights(0.3))
    first = {n: get_mask(linear) for n, linear in masked_linears(model).items()}
    report = dsee.prune(model, dsee.Weights(0.6, **WEIGHT))
    assert share(model) == pytest.approx(0.6, abs=1e-4)
    assert not any(bool((get_mask(linear) & ~first[n]).any()) for n, linear in masked_linears(model).items())
    total = sum(m.weights for m in report.zeros.values())
    assert sum(m.before for m in report.zeros.values()) == pytest.approx(0.3 * total, abs=1)


def test_a_ratio_below_what_is_masked_is_refused():
    model = tiny_bert()
    dsee.prune(model, dsee.Weights(0.6, **WEIGHT))
    with pytest.raises(dsee.InputError, match=r"Weights 0\.5.*60\.0% of the weights are masked already"):
        dsee.prune(model, dsee.Weights(0.5, **WEIGHT))
    assert share(model) == pytest.approx(0.6, abs=1e-4)
    assert len(dsee.history(model)) == 1


@pytest.mark.parametrize("name", ["bert", *HEADED])
def test_a_cut_after_single_weights_cuts_the_mask_along(name):
    model = adapted(build(name), task_type=task_type(name), support="random")
    dsee.prune(model, dsee.Weights(0.5, **WEIGHT))
    kept = {target.name: target.mask for target in mask_targets(model)}
    dsee.prune(model, dsee.Heads(1, **WEIGHT), dsee.Neurons(7, **WEIGHT))
    for view in layers(model):
        assert (view.heads, view.neurons) == (3, 33)
    for target in mask_targets(model):
        assert target.mask.shape == target.shape
        assert not oriented(target.linear)[~target.mask].any()
        # other weights than the masked ones stay, but for those that went
        assert int(target.mask.sum()) <= int(kept[target.name].sum())
    assert torch.isfinite(answer(model, name)).all()


#: Eight features to a head, 48 neurons.
ALLOWED = {
    "heads in blocks of rows": (dsee.Blocks(0.5, **WEIGHT), dsee.Heads(1, **WEIGHT)),
    "heads in groups of columns": (dsee.NofM(2, 4, **WEIGHT), dsee.Heads(1, **WEIGHT)),
    "neurons in whole runs": (dsee.Blocks(0.5, **WEIGHT), dsee.Neurons(explicit={0: [4, 5, 6, 7], 2: [0, 1, 2, 3]})),
    "neurons where no mask is": (dsee.Blocks(0.5, targets=["query"], **WEIGHT), dsee.Neurons(1, **WEIGHT)),
    "neurons of 8 wide blocks": (dsee.Blocks(0.5, shape=(1, 1), **WEIGHT), dsee.Neurons(1, **WEIGHT)),
}
REFUSED = {
    "heads across blocks": (dsee.Blocks(0.5, shape=(16, 1), **WEIGHT), dsee.Heads(1, **WEIGHT), "16 rows"),
    "heads across columns": (dsee.Blocks(0.5, shape=(1, 16), **WEIGHT), dsee.Heads(1, **WEIGHT), "16 columns"),
    "neurons across blocks": (dsee.Blocks(0.5, **WEIGHT), dsee.Neurons(explicit={1: [3, 4, 5, 6]}), "4 rows"),
    "neurons across groups": (dsee.NofM(2, 4, **WEIGHT), dsee.Neurons(explicit={1: [3]}), "4 columns"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_cut_that_leaves_the_pattern_whole_is_fine(case):
    mask, cut = ALLOWED[case]
    model = tiny_bert(**SIZES)
    dsee.prune(model, mask)
    dsee.prune(model, cut)
    for target in mask_targets(model, mask.targets):
        down, across = mask.grain
        kept = block_sums(target.mask.to(torch.int32), (down, across))
        if isinstance(mask, dsee.NofM):
            assert bool((kept <= mask.n).all())
        else:
            assert set(kept.unique().tolist()) <= {0, down * across}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cut_that_would_tear_the_pattern_is_refused_by_the_steps_name(case):
    mask, cut, runs = REFUSED[case]
    model = tiny_bert(**SIZES)
    dsee.prune(model, mask)
    before, steps = {n: t.clone() for n, t in model.state_dict().items()}, dsee.history(model)
    message = rf"step 1, prune \({re.escape(mask.label)}\).*whole runs of {runs}\. Cut first, then mask"
    with pytest.raises(dsee.OrderError, match=message):
        dsee.prune(model, cut)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert dsee.history(model) == steps


def test_the_remedy_of_the_refusal_works():
    model = tiny_bert(**SIZES)
    dsee.prune(model, dsee.Blocks(0.5, shape=(4, 1), **WEIGHT), dsee.Neurons(3, **WEIGHT))
    assert dsee.history(model)[-1]["zeros_after"] == pytest.approx(0.5, abs=1e-3)


def test_a_cut_after_masks_were_given_up_is_fine():
    model = tiny_bert(**SIZES)
    dsee.prune(model, dsee.Blocks(0.5, **WEIGHT))
    for linear in list(masked_linears(model).values()):
        set_mask(linear, None)
    dsee.prune(model, dsee.Neurons(1, **WEIGHT))


SECOND = [
    (dsee.Weights(0.3, **WEIGHT), dsee.NofM(2, 4, **WEIGHT), True),
    (dsee.NofM(2, 4, **WEIGHT), dsee.Weights(0.7, **WEIGHT), True),
    (dsee.NofM(2, 4, **WEIGHT), dsee.NofM(1, 4, **WEIGHT), True),
    (dsee.Blocks(0.3, **WEIGHT), dsee.Blocks(0.6, **WEIGHT), True),
    (dsee.Blocks(0.3, targets=["query"], **WEIGHT), dsee.Weights(0.6, targets=["value"], **WEIGHT), True),
    (dsee.Weights(0.3, **WEIGHT), dsee.Blocks(0.6, **WEIGHT), False),
    (dsee.Blocks(0.3, **WEIGHT), dsee.Weights(0.6, **WEIGHT), False),
    (dsee.Blocks(0.3, **WEIGHT), dsee.NofM(2, 4, **WEIGHT), False),
    (dsee.Blocks(0.3, **WEIGHT), dsee.Blocks(0.6, shape=(8, 1), **WEIGHT), False),
    (dsee.NofM(2, 4, **WEIGHT), dsee.Blocks(0.6, **WEIGHT), False),
]


@pytest.mark.parametrize(("first", "second", "allowed"), SECOND)
def test_a_second_pattern_holds_or_is_refused_by_the_steps_name(first, second, allowed):
    model = tiny_bert()
    dsee.prune(model, first)
    if allowed:
        dsee.prune(model, second)
        for rule in (first, second):
            for target in mask_targets(model, rule.targets) if isinstance(rule, dsee.NofM) else ():
                assert bool((target.mask.view(target.shape[0], -1, rule.m).sum(2) <= rule.n).all())
    else:
        with pytest.raises(dsee.OrderError, match=rf"step 1, prune \({re.escape(first.label)}\), has masked the same"):
            dsee.prune(model, second)
        assert len(dsee.history(model)) == 1


def test_blocks_on_a_mask_without_a_history_are_checked_too():
    model = tiny_bert()
    for target in mask_targets(model):
        set_mask(target.linear, torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    with pytest.raises(dsee.OrderError, match="leaves blocks of 4x1 half full"):
        dsee.prune(model, dsee.Blocks(0.6, **WEIGHT))


@pytest.mark.parametrize("where", ["now", "after the cut"])
def test_ragged_widths_are_refused_before_anything_is_cut(where):
    model = tiny_bert(intermediate_size=42 if where == "now" else 40)
    cuts = [] if where == "now" else [dsee.Neurons(3, **WEIGHT)]
    inputs = 42 if where == "now" else 37
    with pytest.raises(dsee.InputError, match=rf"NofM 2:4: .*output\.dense has {inputs} inputs.*multiple_of=4"):
        dsee.prune(model, *cuts, dsee.NofM(2, 4, **WEIGHT))
    assert not dsee.history(model)
    assert not masked_linears(model)


def test_widths_that_a_cut_of_the_same_call_makes_even_are_fine():
    model = tiny_bert(intermediate_size=42)
    dsee.prune(model, dsee.NofM(2, 4, **WEIGHT), dsee.Neurons(2, **WEIGHT))
    assert share(model) == 0.5


def test_missing_data_is_noticed_before_anything_is_cut():
    model = adapted(tiny_bert())
    with pytest.raises(dsee.InputError, match="score='fisher' looks at data"):
        dsee.prune(model, dsee.Heads(1), dsee.Weights(0.5, score="fisher"))
    assert not dsee.history(model)


def test_cuts_stand_and_are_recorded_when_a_score_of_weights_fails_after_them():
    model = adapted(tiny_bert())
    with pytest.raises(dsee.InputError, match="no labels"):
        dsee.prune(model, dsee.Heads(1), dsee.Weights(0.5, score="fisher"), calibration=[batch()])
    assert [step["rules"][0]["rule"] for step in dsee.history(model)] == ["heads"]
    assert logits(model).shape == (4, 3)


def test_a_merged_update_is_refused():
    model = adapted(tiny_bert())
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="merged"):
        dsee.prune(model, dsee.Weights(0.5))


def test_a_model_without_a_map_can_be_masked_by_names():
    model = tiny_bert()
    model.config.model_type = "unheard of"
    report = dsee.prune(model, dsee.Weights(0.5, targets=["query"], **WEIGHT))
    assert (report.before, len(report.zeros)) == ({}, 3)
    assert str(report).startswith("zeros: 0.0% -> 50.0%")
    assert dsee.history(model)[0]["before"] == {}


def test_masking_what_the_rules_say_is_what_prune_does():
    model, other = adapted(tiny_bert()), adapted(tiny_bert())
    dsee.prune(model, dsee.Weights(0.5))
    masks = masks_for(other, dsee.Weights(0.5))
    assert all(torch.equal(target.mask, masks[target.name]) for target in mask_targets(model))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_effective_operations_leave_the_zeros_out(name):
    model = build(name)
    dense = dsee.flops(model, sequence=16)
    dsee.prune(model, dsee.Blocks(0.5, **WEIGHT))
    sparse = dsee.flops(model, sequence=16)
    assert (sparse.total, dense.total - dense.effective) == (dense.total, 0)
    gone = sum(int((~get_mask(linear)).sum()) for linear in masked_linears(model).values())
    assert sparse.effective == dense.total - 2 * 16 * gone


def test_the_summary_tells_the_zeros():
    model = scrambled(adapted(tiny_bert()))
    assert "zeros" not in str(dsee.summary(model))
    dsee.prune(model, dsee.Weights(0.5))
    found = dsee.summary(model)
    assert found.zeros == (9984, 19968)
    assert "zeros       50.0% of the 19,968 weights of masked matrices" in str(found)
    assert bare(model.get_base_model().bert.encoder.layer[0].output.dense).weight.dtype == torch.float32
