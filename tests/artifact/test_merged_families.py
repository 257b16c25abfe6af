"""Masked updates, split merges, compact files and updates without a base in every mapped family."""

import warnings

import pytest
import torch

import dsee
from conftest import FAMILIES, adapted
from cut_families import LINEARS, NAMES, answer, build, task_type
from update.models import scrambled

QUICK = ("deberta-v3", "t5 gated")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*FAMILIES, *NAMES)]


def pruned(name, **config):
    targets = LINEARS if name in NAMES else ["query", "value", "q_lin", "v_lin", "intermediate.dense", "lin1"]
    if name not in NAMES:
        targets = [t for t in targets if any(path.endswith(t) for path, _ in build(name).named_modules())]
    model = adapted(
        build(name), task_type=task_type(name), target_modules=targets, support="random", n_sparse=40, **config
    )
    dsee.prune(scrambled(model), dsee.Weights(0.6, score="weight"))
    return model


@pytest.mark.parametrize("name", ALL)
def test_every_way_keeps_the_logits(tmp_path, name):
    model = pruned(name, masked=True)
    expected = answer(model, name)
    merged = dsee.merge(model, policy="error")
    assert torch.equal(answer(merged, name), expected)
    assert torch.equal(answer(dsee.load(dsee.save(merged, tmp_path / "masked", compact=True)), name), expected)

    model = pruned(name)
    expected = answer(model, name)
    alone = dsee.load(dsee.save(model, tmp_path / "update", base=False), base=build(name))
    assert torch.equal(answer(alone, name), expected)
    with warnings.catch_warnings():
        # merging remarks what happens to the update at the zeros; other tests look at that
        warnings.simplefilter("ignore")
        split = dsee.merge(model, policy="split")
    torch.testing.assert_close(answer(split, name), expected, rtol=0, atol=3e-5)
    again = dsee.load(dsee.save(split, tmp_path / "split", compact=True))
    assert torch.equal(answer(again, name), answer(split, name))
