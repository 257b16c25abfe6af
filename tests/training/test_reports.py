"""Who is told while a stage tunes, and that listening changes nothing."""

import json

import pytest

from chain import prepare
from dsee.artifact.manifest import sha256
from dsee.errors import InputError
from dsee.training import load_recipe, reports, run
from dsee.training.chain import check_recipe

ONE = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8}


@pytest.mark.slow
def test_tensorboard_gets_losses_and_figures_of_each_stage_and_the_weights_stay_the_same(tmp_path, model_folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    digests = []
    for told in ([], ["tensorboard"]):
        folder = tmp_path / ("told" if told else "silent")
        folder.mkdir()
        changes = {"tune": ONE, "recover": ONE, "prune": {"heads": 0.25}, "export": {"onnx": []}, "report_to": told}
        path = prepare(folder, model_folder, **changes)
        result = run(load_recipe(path), base=folder)
        digests.append(sha256(folder / "out" / "model" / "model.safetensors"))
        assert (folder / "out" / "logs").exists() == bool(told)
    assert digests[0] == digests[1]
    for stage in ("tune", "recover"):
        events = next((folder / "out" / "logs" / stage).rglob("events.out.*"))
        found = EventAccumulator(str(events)).Reload()
        assert {"train/loss", "train/learning_rate", "eval/accuracy"} <= set(found.Tags()["scalars"])
        told = [event.value for event in found.Scalars("eval/accuracy")]
        assert told == pytest.approx([entry["accuracy"] for entry in result.stages[stage]["validation"]])
        # nothing but events: checkpoints would fill the disk
        assert {path.name.split(".")[0] for path in (folder / "out" / "logs" / stage).rglob("*") if path.is_file()} == {
            "events"
        }
    json.loads((folder / "out" / "stages" / "tune.json").read_text(encoding="utf-8"))


def test_a_missing_package_is_named_before_anything_runs(tmp_path, model_folder, monkeypatch):
    recipe = load_recipe(prepare(tmp_path, model_folder, report_to=["wandb", "tensorboard"]))
    monkeypatch.setattr(reports.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(InputError, match=r"report_to: wandb is not installed\. Install it with: pip install wandb"):
        check_recipe(recipe)


def test_an_unknown_name_is_refused(tmp_path, model_folder):
    with pytest.raises(InputError, match=r"report_to\.0: Input should be 'tensorboard', 'wandb' or 'mlflow'"):
        load_recipe(prepare(tmp_path, model_folder, report_to=["tensorbord"]))


def test_nobody_is_told_by_default(tmp_path):
    told = reports.Reports((), tmp_path, "run")
    assert told.arguments() == {}
    assert reports.Reports(("mlflow",), tmp_path, "run").arguments()["report_to"] == ["mlflow"]
