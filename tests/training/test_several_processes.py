"""`dsee run` as two real processes of torchrun: what one process gets, and every file written once."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from one_of_several import carry_out, watch_losses
from safetensors.torch import load_file

from chain import prepare
from conftest import sentences, write_csv
from dsee.artifact.manifest import sha256
from writing_tools import gpt2, pretrained, rows, write_jsonl

TESTS = Path(__file__).resolve().parents[1]
# sums in another order, over some dozens of steps
TOLERANCE = 1e-5
# and where gradients are as small as their rounding, which Adam divides by: in the writing recipe one process with two
# threads in place of one ends 1.5e-5 apart, in the same update of the same projection
WRITING_TOLERANCE = 1e-4
SHORT = {"learning_rate": 1e-2, "batch_size": 8}
PLAIN = {"export": {"onnx": []}, "base_dropout": 0.0, "tune": SHORT | {"epochs": 1}, "recover": SHORT | {"epochs": 1}}


def start(arguments, **more):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # where there are GPUs, there may be one
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "training"), *sys.path]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | more,
        start_new_session=True,
    )


def finish(process, seconds=1500):
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, errors


@pytest.fixture
def alone(monkeypatch):
    """The same recipe in this process."""
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "training_step", Trainer.training_step)
    losses, sharded = watch_losses()
    return lambda path: carry_out(path, losses, sharded)


def seen(folder):
    return [json.loads((folder / f"seen-{rank}-of-2.json").read_text(encoding="utf-8")) for rank in range(2)]


def ground(folder, model_folder, count=160, **changes):
    path = prepare(folder, model_folder, **(PLAIN | changes))
    write_csv(folder / "train.csv", sentences(count))
    return path


def weights(folder):
    """All numbers of a run's artifacts, by file and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(folder)}: {name}"] = tensor
    return found


def numbers(figures):
    """Figures without those that a task has none of."""
    return {key: value for key, value in (figures or {}).items() if value is not None}


def check(one, both, folder, name):
    """Two processes saw, got and left what one did."""
    first, second = (found[name] for found in both)
    assert first["processes"] == second["processes"] == 2
    # one speaks and writes for both, and both end with the same
    assert second["shown"] == []
    assert second["touched"] == []
    assert first["touched"]
    assert first["model"] == second["model"]
    assert first["stages"] == second["stages"]
    assert first["shown"] == one["shown"]
    assert all(done == total for stage, (done, total) in first["steps"].items() if stage != "measure")
    assert len(one["losses"]) == len(first["losses"]) == len(second["losses"])
    mean = [(a + b) / 2 for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(one["losses"], rel=1e-4, abs=1e-5)
    for stage, found in one["stages"].items():
        if stage != "measure":
            ours, theirs = numbers(found.get("test")), numbers(first["stages"][stage].get("test"))
            assert ours == pytest.approx(theirs, rel=1e-5), stage
            assert found.get("after") == first["stages"][stage].get("after")
    ours, theirs = (weights(folder / f"out-{name}-{processes}") for processes in (1, 2))
    assert ours.keys() == theirs.keys()
    tolerance = WRITING_TOLERANCE if name.startswith("writing") else TOLERANCE
    for key, tensor in ours.items():
        if tensor.is_floating_point():
            difference = float((theirs[key] - tensor).abs().max()) if tensor.numel() else 0.0
            assert difference <= tolerance * max(1.0, float(tensor.abs().max()) if tensor.numel() else 0.0), key
        else:
            # supports and masks
            assert torch.equal(theirs[key], tensor), key


def test_two_processes_end_where_one_does(tmp_path, model_folder, alone):
    # the last batch of a pass has a single row, so that one process has none
    path = ground(tmp_path, model_folder, count=162, prune={"heads": 0.25, "calibration": 32})
    code, _, errors = finish(start([str(TESTS / "training" / "one_of_several.py"), str(tmp_path), str(path)]))
    assert code == 0, errors[-4000:]
    one, both = alone(path), seen(tmp_path)
    # 97 rows in eights, once to tune and once to recover
    assert len(both[0]["recipe"]["losses"]) == 2 * 13
    check(one, both, tmp_path, "recipe")
    assert "find_unused_parameters" not in errors


VARIANTS = {
    "cuts-and-blocks": {"prune": {"heads": 0.25, "neurons": 0.4, "blocks": {"ratio": 0.5}, "calibration": 32}},
    "distilled": {"prune": {"weights": 0.5, "calibration": 32}, "recover": SHORT | {"epochs": 1, "distill": True}},
    "grown": {"prune": {"weights": {"ratio": 0.5, "score": "movement"}, "schedule": {"every": 2}, "calibration": 32}},
    "gates": {"gates": True, "prune": {"heads": {"amount": 1, "score": "gate"}}},
    "lora": {"method": "lora", "update": {"r": 4}, "prune": {"weights": {"ratio": 0.5, "score": "weight"}}},
    # Adam's first steps on every weight have the sign of its gradient, which where it is near 0 is that of the rounding
    "full": {
        "method": "full",
        "update": None,
        "tune": {"epochs": 1, "learning_rate": 5e-4, "batch_size": 8},
        "prune": {"weights": {"ratio": 0.5, "score": "weight"}},
        "recover": {"epochs": 1, "learning_rate": 5e-4, "batch_size": 8},
    },
    "by-gradient": {"update": {"r": 2, "n_sparse": 8, "support": "gradient"}, "prune": None},
    "streamed": {
        "data": {
            "train": "train.csv",
            "validation": "held.csv",
            "test": "held.csv",
            "streaming": True,
            "labels": ["negative", "positive"],
        },
        "tune": SHORT | {"max_steps": 25, "eval_steps": 15},
        "prune": None,
    },
    "cached": {
        "update": {"r": 4, "n_sparse": 8, "layers_to_transform": [2]},
        "attention_dropout": 0.0,
        "cache_prefix": True,
        "prune": None,
    },
    "in-pieces": {"fsdp": True, "prune": {"heads": 0.25, "neurons": 0.4, "calibration": 32}},
    "in-pieces-lora": {"fsdp": True, "method": "lora", "update": {"r": 4}, "prune": {"weights": {"ratio": 0.5}}},
}
WRITTEN = {
    "task": "data-to-text",
    "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
    "generation": {
        "references": "references",
        "label_smoothing": 0.1,
        "metrics": [],
        "decoding": {"beams": 2, "max_new_tokens": 16, "batch_size": 5},
    },
    "update": {"r": 8, "alpha": 16, "n_sparse": 8, "target_modules": "all-linear"},
    "prune": {"weights": 0.2},
    "export": {"onnx": []},
    "measure": {"sequence": 16, "runs": 2, "memory": False},
    "tune": {"epochs": 2, "learning_rate": 0.02, "batch_size": 16},
    "recover": {"epochs": 1, "learning_rate": 0.01, "batch_size": 16},
    "base_dropout": 0.0,
    "max_length": 48,
    "output": "out",
}
WRITING = {
    "writing": {},
    "writing-distilled": {"recover": {"epochs": 1, "batch_size": 16, "distill": True}},
    "writing-in-pieces": {"fsdp": True},
}


def variants(folder, model_folder):
    """Write all recipes and their data; return their paths."""
    paths = {}
    for name, changes in VARIANTS.items():
        path = ground(folder, model_folder, 121, **changes)
        content = {key: value for key, value in yaml.safe_load(path.read_text()).items() if value is not None}
        paths[name] = path.with_name(f"{name}.yaml")
        paths[name].write_text(yaml.safe_dump(content), encoding="utf-8")
    write_csv(folder / "held.csv", sentences(30, seed=5))
    pretrained(folder / "tiny-gpt2", gpt2)
    for name, size, seed in (("train", 150, 1), ("validation", 24, 2), ("test", 23, 3)):
        write_jsonl(folder / f"{name}.jsonl", rows(size, seed))
    for name, changes in WRITING.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump({"model": "tiny-gpt2"} | WRITTEN | changes), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def many(tmp_path_factory, model_folder):
    """All variants in two processes, which start once; folder, paths, and what both saw or the words of the failure."""
    folder = tmp_path_factory.mktemp("many")
    paths = variants(folder, model_folder)

    @cache
    def both():
        script = str(TESTS / "training" / "one_of_several.py")
        code, _, errors = finish(start([script, str(folder), *map(str, paths.values())]), 3000)
        return seen(folder) if code == 0 else errors[-4000:]

    return folder, paths, both


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VARIANTS, *WRITING])
def test_every_kind_of_recipe(many, alone, name):
    folder, paths, both = many
    found = both()
    assert isinstance(found, list), found
    one = alone(paths[name])
    check(one, found, folder, name)
    assert all(all(both_[name]["sharded"]) == ("pieces" in name) for both_ in found)
    if name.startswith("writing"):
        for file in (folder / f"out-{name}-1" / "stages").glob("texts-*.jsonl"):
            # row by row what one process writes
            assert file.read_bytes() == (folder / f"out-{name}-2" / "stages" / file.name).read_bytes()


@pytest.mark.slow
def test_the_command_under_torchrun_and_killed_on_the_way(tmp_path, model_folder):
    path = ground(
        tmp_path,
        model_folder,
        prune={"heads": 0.25, "neurons": 0.4, "blocks": {"ratio": 0.5}, "calibration": 32},
        export={"onnx": ["fp32"]},
    )
    code, out, errors = finish(start(["-m", "dsee", "run", str(path), "--output", str(tmp_path / "straight")]))
    assert code == 0, errors[-4000:]
    assert out.count("written to") == 1
    assert out.count("recovered") == 1
    assert errors.count("loading torch") == 1
    for name in ("report.json", "report.md", "model/model.safetensors", "onnx-fp32/model.onnx", "stages/measure.json"):
        assert (tmp_path / "straight" / name).is_file(), name

    broken = start(["-m", "dsee", "run", str(path)])
    record = tmp_path / "out" / "stages" / "prune.json"
    for _ in range(60000):
        if record.exists() or broken.poll() is not None:
            break
        time.sleep(0.01)
    # torchrun's workers have sessions of their own, and outlive it
    for process in [*psutil.Process(broken.pid).children(recursive=True), broken]:
        process.kill()
    finish(broken)
    assert record.exists()
    assert not (tmp_path / "out" / "report.json").exists()
    code, _, errors = finish(start(["-m", "dsee", "run", str(path)]))
    assert code == 0, errors[-4000:]
    assert "tune     done before" in errors
    for name in ("stages/tuned/adapter", "stages/recovered/adapter"):
        file = f"{name}/adapter_model.safetensors"
        assert sha256(tmp_path / "out" / file) == sha256(tmp_path / "straight" / file)
    assert sha256(tmp_path / "out/model/model.safetensors") == sha256(tmp_path / "straight/model/model.safetensors")
    # one process goes on from what two have left, and the other way round
    code, _, errors = finish(start(["-m", "dsee", "run", str(path), "--seeds", "0,1"], DSEE_TRACEBACK=""))
    # torchrun's own: it does not hand on its workers'
    assert code == 1
    assert errors.count("holds other things than seeds") == 1


@pytest.mark.slow
def test_several_seeds_under_torchrun(tmp_path, model_folder):
    path = ground(tmp_path, model_folder, prune=None, tune=SHORT | {"epochs": 1})
    code, out, errors = finish(start(["-m", "dsee", "run", str(path), "--seeds", "0,1"]))
    assert code == 0, errors[-4000:]
    assert (tmp_path / "out" / "seeds.json").is_file()
    assert out.count(f"written to {tmp_path / 'out'}\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_on_one_process_ends_both_with_one_message(tmp_path, model_folder, rank):
    path = ground(tmp_path, model_folder)
    script = str(TESTS / "training" / "one_of_several.py")
    code, _, errors = finish(start([script, str(tmp_path), str(path)], DSEE_TEST_FAILS_ON=rank), 600)
    assert code != 0
    assert errors.count("the third step is one too many") == 1
    assert ("process 1 of 2: " in errors) == (rank == "1")
    assert not list(tmp_path.glob("seen-*"))


@pytest.mark.slow
def test_a_mistake_in_the_recipe_is_said_once(tmp_path, model_folder):
    path = ground(tmp_path, model_folder, tune=SHORT | {"batch_size": 7})
    code, _, errors = finish(start(["-m", "dsee", "run", str(path)]), 600)
    assert code != 0
    assert errors.count("tune.batch_size=7 cannot be shared out among 2 processes") == 1
    assert "Traceback (most recent call last):\n  File" not in errors.split("torch/distributed/elastic")[0]
    assert not (tmp_path / "out").exists()
