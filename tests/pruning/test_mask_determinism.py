"""The same masks whatever the number of threads, and in every process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mask_models import data, shared

import dsee
from conftest import adapted, tiny_bert
from dsee.pruning import masks_for
from dsee.pruning.weight_scores import _WEIGHT_SCORES

RULES = {
    "weights": dsee.Weights(0.5),
    "fisher": dsee.Weights(0.7, score="fisher"),
    "taylor blocks": dsee.Blocks(0.5, score="taylor"),
    "wanda": dsee.NofM(2, 4, score="wanda"),
    "random": dsee.Weights(0.3, score="random"),
}


def digest(rule):
    # wide enough for torch to hand the products to several threads
    model = adapted(tiny_bert(hidden_size=128, intermediate_size=512, num_hidden_layers=1))
    masks = masks_for(model, rule, data())
    return hashlib.sha256(b"".join(n.encode() + m.numpy().tobytes() for n, m in masks.items())).hexdigest()


@pytest.mark.parametrize("name", ["fisher", "wanda"])
def test_threads_make_no_difference(name):
    found = set()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.add(digest(RULES[name]))
    assert len(found) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_scores_are_computed_on_one_thread_since_others_round_sums_differently(monkeypatch, fails):
    seen = []

    def score(given):
        seen.append(torch.get_num_threads())
        return {} if fails else {t.name: t.weight for t in given.targets}

    monkeypatch.setitem(_WEIGHT_SCORES, "curious", score)
    torch.set_num_threads(3)
    if fails:
        with pytest.raises(dsee.InputError, match="gave no values"):
            masks_for(shared("bert"), dsee.Weights(0.5, score="curious"))
    else:
        masks_for(shared("bert"), dsee.Weights(0.5, score="curious"))
    assert seen == [1]
    assert torch.get_num_threads() == 3


@pytest.mark.slow
def test_two_processes_choose_the_same():
    code = (
        "from test_mask_determinism import RULES, digest; print(*[digest(rule) for rule in RULES.values()], sep='\\n')"
    )
    here = Path(__file__).parent
    outputs = []
    for threads in ("1", "3"):
        paths = [str(here), str(here.parent), *(p for p in sys.path if p)]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    assert outputs[0] == outputs[1] == [digest(rule) for rule in RULES.values()]
