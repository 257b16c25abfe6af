"""The same masks whatever the number of threads, and in every process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mask_models import data

import dsee
from conftest import adapted, tiny_bert
from dsee.pruning import masks_for

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


@pytest.mark.parametrize("name", RULES)
def test_threads_make_no_difference(name):
    found = set()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.add(digest(RULES[name]))
        assert torch.get_num_threads() == threads
    assert len(found) == 1


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
