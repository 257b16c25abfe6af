"""Gradual masks: the law, the exact end, zeros after every optimizer step, and going on from a stored state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.errors import ArtifactError, InputError, OrderError
from dsee.pruning import apply_masks, get_mask, masks_for
from dsee.pruning.schedule import LAWS
from dsee.pruning.targets import mask_targets

TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def everywhere(**config):
    return adapted(tiny_bert(), target_modules=TARGETS, **config)


def masks(model):
    return {t.name: get_mask(t.linear) for t in mask_targets(model)}


def density(found):
    return 1 - sum(int(m.sum()) for m in found.values()) / sum(m.numel() for m in found.values())


def step(model, optimizer, number):
    model.train()
    model(**batch(labels=True, seed=number)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0.05, 0.95),
    start=st.integers(0, 30),
    length=st.integers(1, 60),
    every=st.integers(1, 25),
    law=st.sampled_from(sorted(LAWS)),
)
def test_the_ratio_only_grows_and_ends_exactly(ratio, start, length, every, law):
    schedule = dsee.Gradual(dsee.Weights(ratio, score="weight"), start=start, end=start + length, every=every, law=law)
    schedule._span = (start, start + length)
    found = [schedule.at(s) for s in range(start + length + 3)]
    ratios = [0.0 if rule is None else rule.ratio for rule in found]
    assert ratios == sorted(ratios)
    assert all(r == 0 for r in ratios[: start + 1])
    assert ratios[start + length :] == [ratio] * 3
    for s in range(start, start + length):
        t = (s - start) // every * every / length
        expected = ratio * (1 - (1 - t) ** 3 if law == "cubic" else t)
        assert ratios[s] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 16), data=st.data(), length=st.integers(1, 40), every=st.integers(1, 9))
def test_n_of_m_loses_one_after_the_other(m, data, length, every):
    n = data.draw(st.integers(1, m - 1))
    schedule = dsee.Gradual(dsee.NofM(n, m, score="weight"), start=0, end=length, every=every)
    schedule._span = (0, length)
    kept = [m if (rule := schedule.at(s)) is None else rule.n for s in range(length + 1)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == n


@pytest.mark.parametrize(
    "rule",
    [
        dsee.Weights(0.6, score="weight"),
        dsee.Blocks(0.6, score="movement"),
        dsee.NofM(2, 4, score="weight+update"),
        dsee.Weights(0.6, score="update", scope="layer"),
    ],
    ids=lambda rule: rule.label,
)
def test_masks_grow_and_hold_after_every_step_of_a_frozen_base(rule):
    model = everywhere()
    original = {t.name: t.weight.clone() for t in mask_targets(model)}
    schedule = dsee.Gradual(rule, start=1, end=9, every=2)
    schedule.attach(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    before, growing = None, []
    for number in range(1, 12):
        step(model, optimizer, number)
        changed = schedule.step(model, number)
        now = masks(model)
        if all(mask is None for mask in now.values()):
            assert not changed
            continue
        for target in mask_targets(model):
            assert torch.equal(target.weight, original[target.name] * now[target.name])
            if before:
                assert not (now[target.name] & ~before[target.name]).any(), "a masked weight came back"
        assert changed == (before is None or any(not torch.equal(now[n], before[n]) for n in now))
        growing.append(density(now))
        before = now
    assert schedule.done
    assert growing == sorted(growing)
    # on the wider matrices blocks meet a ratio to within one of them
    assert growing[-1] == pytest.approx(0.5 if isinstance(rule, dsee.NofM) else 0.6, abs=2e-3)
    assert len(set(growing)) == (2 if isinstance(rule, dsee.NofM) else 4)
    schedule.finish(model)
    assert dsee.history(model)[-1]["schedule"] == {"start": 1, "end": 9, "every": 2, "law": "cubic", "regrow": False}


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_masks_hold_when_the_optimizer_moves_the_weights_themselves(decay):
    model = tiny_bert()
    schedule = dsee.Gradual(dsee.Weights(0.5, score="weight"), start=0, end=6, every=2)
    schedule.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=decay)
    for number in range(1, 10):
        before = {t.name: t.weight.clone() for t in mask_targets(model)}
        step(model, optimizer, number)
        schedule.step(model, number)
        for target in mask_targets(model):
            if target.mask is not None:
                assert not target.weight[~target.mask].any()
                kept = target.mask
                assert not torch.equal(target.weight[kept], before[target.name][kept])
    assert density(masks(model)) == pytest.approx(0.5, abs=1e-3)


def test_with_regrow_a_weight_returns_with_its_old_value():
    model = everywhere(init_weights=True)
    original = {t.name: t.weight.clone() for t in mask_targets(model)}
    schedule = dsee.Gradual(dsee.Weights(0.5, score="movement"), start=0, end=6, every=1, regrow=True, law="linear")
    schedule.attach(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    before, returned = None, 0
    for number in range(1, 8):
        step(model, optimizer, number)
        schedule.step(model, number)
        now = masks(model)
        for target in mask_targets(model):
            assert torch.equal(target.weight, original[target.name] * now[target.name])
        returned += sum(int((now[n] & ~before[n]).sum()) for n in now) if before else 0
        before = now
    assert returned
    assert density(before) == pytest.approx(0.5, abs=1e-3)
    schedule.finish(model)
    assert not any(hasattr(m, name) for m in model.modules() for name in ("dsee_dense", "dsee_movement"))


def test_a_schedule_starts_from_the_zeros_there_are():
    model = everywhere()
    apply_masks(model, masks_for(model, dsee.Weights(0.3, score="weight")))
    schedule = dsee.Gradual(dsee.Weights(0.5, score="weight"), start=0, end=4, every=1, law="linear")
    schedule.attach(model)
    found = []
    for number in range(1, 5):
        schedule.step(model, number)
        found.append(density(masks(model)))
    assert found == pytest.approx([0.35, 0.4, 0.45, 0.5], abs=1e-3)


def test_a_step_that_was_left_out_is_made_up_for():
    one, other = everywhere(), everywhere()
    rule = dsee.Weights(0.5, score="weight")
    for model, steps in ((one, range(1, 8)), (other, [3, 7])):
        schedule = dsee.Gradual(rule, start=0, end=7, every=2)
        schedule.attach(model)
        for number in steps:
            schedule.step(model, number)
    assert all(torch.equal(a, b) for a, b in zip(masks(one).values(), masks(other).values(), strict=True))


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_stored_state_goes_on_as_if_nothing_had_been(regrow, stop):
    def prepared():
        model = everywhere()
        schedule = dsee.Gradual(dsee.Blocks(0.6, score="movement"), start=1, end=7, every=2, regrow=regrow)
        schedule.attach(model)
        return model, schedule, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)

    model, schedule, optimizer = prepared()
    fresh, again, other = prepared()
    for number in range(1, 10):
        torch.manual_seed(number)
        step(model, optimizer, number)
        schedule.step(model, number)
        if number == stop:
            tensors, facts = schedule.state(model)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if name in trained:
                parameter.copy_(trained[name])
    again.restore(fresh, tensors, facts)
    for number in range(stop + 1, 10):
        torch.manual_seed(number)
        step(fresh, other, number)
        again.step(fresh, number)
    theirs = dict(model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in fresh.named_parameters())
    assert dsee.history(fresh) == dsee.history(model)


def test_a_state_of_another_schedule_or_model_is_refused():
    model = everywhere()
    schedule = dsee.Gradual(dsee.Weights(0.5, score="movement"), end=5)
    schedule.attach(model)
    tensors, facts = schedule.state(model)
    other = dsee.Gradual(dsee.Weights(0.5, score="movement"), end=5, every=3)
    other.attach(everywhere())
    with pytest.raises(InputError, match="every=10, this schedule every=3"):
        other.restore(model, tensors, facts)
    tensors.pop(next(name for name in tensors if name.startswith("movement.")))
    with pytest.raises(ArtifactError, match="not those of this model"):
        schedule.restore(model, tensors, facts)


@pytest.mark.parametrize(
    ("rule", "arguments", "said"),
    [
        (dsee.Heads(1, score="weight"), {}, "Heads cannot be reached gradually"),
        (dsee.Neurons(1), {}, "call dsee.prune between stages"),
        (dsee.Weights(0.5), {"law": "cubc"}, "Did you mean 'cubic'"),
        (dsee.Weights(0.5), {"every": 0}, "every=0"),
        (dsee.Weights(0.5), {"start": -1}, "start=-1"),
        (dsee.Weights(0.5), {"end": 1.5}, "end=1.5"),
        (dsee.Weights(0.5), {"start": 5, "end": 5}, "does not come after"),
    ],
)
def test_impossible_schedules_are_refused(rule, arguments, said):
    with pytest.raises(InputError, match=said):
        dsee.Gradual(rule, **arguments)


def test_what_does_not_fit_the_model_or_the_training_is_refused():
    model = everywhere()
    with pytest.raises(InputError, match="call attach"):
        dsee.Gradual(dsee.Weights(0.5), end=5).step(model, 1)
    with pytest.raises(InputError, match="pass total="):
        dsee.Gradual(dsee.Weights(0.5)).attach(model)
    with pytest.raises(InputError, match="do not fit into a training of 10 steps"):
        dsee.Gradual(dsee.Weights(0.5), end=11).attach(model, 10)
    with pytest.raises(InputError, match="is trained itself"):
        dsee.Gradual(dsee.Weights(0.5, score="weight"), end=5, regrow=True).attach(tiny_bert())
    apply_masks(model, masks_for(model, dsee.Weights(0.3, score="weight")))
    with pytest.raises(InputError, match="has a mask already"):
        dsee.Gradual(dsee.Weights(0.5), end=5, regrow=True).attach(model)
    schedule = dsee.Gradual(dsee.Weights(0.5, score="movement"), end=1)
    schedule.attach(model)
    with pytest.raises(OrderError, match="no step of tuning"):
        schedule.step(model, 1)
