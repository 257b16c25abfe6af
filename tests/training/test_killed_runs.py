"""Runs that are killed at random moments of every stage end in the bytes of a run that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chain import prepare
from dsee.artifact.manifest import sha256

SCRIPT = Path(__file__).with_name("run_and_die.py")
LONG = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 8}


def weights(folder):
    found = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}
    assert {"model/model.safetensors", "stages/tuned/adapter/adapter_model.safetensors"} <= set(found)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs a system that tells a process's time in /proc")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_again_and_again_a_run_ends_as_if_undisturbed(tmp_path, model_folder, seed):
    prune = {"heads": 0.25, "neurons": 0.4, "blocks": {"ratio": 0.5}, "calibration": 32}
    path = prepare(tmp_path, model_folder, prune=prune, tune=LONG, recover=LONG, export={"onnx": []})
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, str(SCRIPT), str(path), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == []
    assert (found["straight"], found["ended"]) == (0, 0)
    assert {kind for _, kind in found["deaths"]} == {"computing", "saving"}
    assert len(found["deaths"]) >= 2
    assert weights(tmp_path / f"broken-{seed}") == weights(tmp_path / "straight")
    # what was left half-written was named, every time
    assert bool(found["half"]) == any("is half-written" in line for line in found["said"])
    assert not list((tmp_path / f"broken-{seed}").rglob(".*.writing"))


def test_what_is_half_written_is_named_and_not_used(copy):
    from test_resume import again

    stages = copy / "out" / "stages"
    (stages / ".recovered.writing").mkdir()
    (stages / ".recovered.writing" / "model.safetensors").write_bytes(b"half")
    weights_file = stages / "recovered" / "adapter" / "adapter_model.safetensors"
    good = weights_file.read_bytes()
    weights_file.write_bytes(good[:-7])
    recorder = again(copy)
    assert recorder.ran == ["recover"]
    half, spoilt = recorder.said
    assert str(stages / ".recovered.writing") in half
    assert "half-written" in half
    assert spoilt.startswith("recover: ")
    assert str(weights_file.name) in spoilt
    assert "run again" in spoilt
    assert weights_file.read_bytes() == good
    assert not (stages / ".recovered.writing").exists()
