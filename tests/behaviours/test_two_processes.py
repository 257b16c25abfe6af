"""Two processes train the update to what one process gets on the same batches: DDP by Accelerate, and FSDP2."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from behaviours.families import EVERY

TESTS = Path(__file__).resolve().parents[1]
# sums in another order, over three steps
TOLERANCE = 1e-5


@cache
def measured(folder: Path, kind: str, names: tuple[str, ...]):
    out = folder / f"{kind}-{len(names)}.json"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(TESTS / "behaviours" / "two_processes.py")
    done = subprocess.run(
        [*command, script, str(out), kind, *names], env=environment, capture_output=True, text=True, timeout=600
    )
    # the words of a failure are kept too: the next family's test should not wait for the same one again
    return json.loads(out.read_text(encoding="utf-8")) if done.returncode == 0 else done.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two-processes")


def check(measurements, name):
    assert isinstance(measurements, dict), measurements
    found = measurements[name]
    assert found["processes"] == 2
    assert found["moved"] > 1e-3
    assert found["ranks_differ"] == 0.0
    assert found["largest_difference_from_one_process"] < TOLERANCE
    assert found["loss_difference"] < TOLERANCE


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_bert(kind, folder):
    check(measured(folder, kind, ("bert",)), "bert")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_family(kind, name, folder):
    check(measured(folder, kind, tuple(sorted(EVERY))), name)
