"""Who is told while a stage tunes, and that listening changes nothing."""

import importlib.util
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
    pytest.importorskip("tensorboard", reason="TensorBoard is the user's to install")
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


def told_to(name, tmp_path, model_folder):
    """A short run that reports to one, and its validation figures by stage."""
    changes = {"tune": ONE, "recover": ONE, "prune": {"heads": 0.25}, "export": {"onnx": []}, "report_to": [name]}
    result = run(load_recipe(prepare(tmp_path, model_folder, **changes)), base=tmp_path)
    return {stage: [entry["accuracy"] for entry in result.stages[stage]["validation"]] for stage in ("tune", "recover")}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # its own
def test_mlflow_gets_one_run_a_stage(tmp_path, model_folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is the user's to install")
    store = f"sqlite:///{tmp_path}/runs.db" if importlib.util.find_spec("sqlalchemy") else (tmp_path / "runs").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    # its file store has to be asked for since version 3
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    expected = told_to("mlflow", tmp_path, model_folder)
    client = mlflow.MlflowClient(store)
    found = {each.info.run_name: each.info for each in client.search_runs(["0"])}
    assert set(found) == {"out-tune", "out-recover"}
    for stage, figures in expected.items():
        info = found[f"out-{stage}"]
        assert info.status == "FINISHED"
        told = client.get_metric_history(info.run_id, "eval/accuracy") or client.get_metric_history(
            info.run_id, "eval_accuracy"
        )
        assert [metric.value for metric in told] == pytest.approx(figures)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # its own
def test_wandb_gets_one_run_a_stage(tmp_path, model_folder, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is the user's to install")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    told_to("wandb", tmp_path, model_folder)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for each in runs:
        written = next(each.glob("run-*.wandb")).read_bytes()
        assert b"eval/accuracy" in written
        assert b"train/loss" in written
    assert {b"out-tune" in next(each.glob("run-*.wandb")).read_bytes() for each in runs} == {True, False}


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
