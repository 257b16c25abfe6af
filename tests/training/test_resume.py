"""Finished stages are kept exactly as long as they are whole and the recipe still asks for them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import dsee
from chain import Recorder, prepare
from dsee.artifact.manifest import sha256
from dsee.errors import DseeError, InputError
from dsee.training import load_recipe, run

STAGES = ["tune", "prune", "recover", "merge", "export", "measure"]


def again(folder, **kwargs):
    recorder = Recorder()
    run(load_recipe(folder / "recipe.yaml"), base=folder, progress=recorder, **kwargs)
    return recorder


def change(folder, section, **values):
    path = folder / "recipe.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content[section] = content.get(section, {}) | values
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def test_a_finished_run_is_not_repeated(copy):
    recorder = again(copy)
    assert recorder.ran == []
    assert recorder.kept == STAGES


def test_a_changed_section_repeats_its_stage_and_those_after_it(copy):
    change(copy, "recover", epochs=1)
    recorder = again(copy)
    assert recorder.kept == ["tune", "prune"]
    assert recorder.ran == STAGES[2:]


def test_distillation_repeats_recovering_and_is_noted(copy):
    before = sha256(copy / "out" / "stages" / "recovered" / "adapter" / "adapter_model.safetensors")
    change(copy, "recover", distill=True)
    change(copy, "export", onnx=[])
    recorder = again(copy)
    assert recorder.kept == ["tune", "prune"]
    done, total = recorder.steps["recover"]
    assert done == total
    recovered = copy / "out" / "stages" / "recovered"
    assert dsee.history(dsee.load(recovered))[-1]["distillation"] == dsee.Distillation().facts()
    distilled = sha256(recovered / "adapter" / "adapter_model.safetensors")
    assert distilled != before
    change(copy, "recover", distill={"hidden": 1.0})
    recorder = again(copy)
    assert recorder.ran[0] == "recover"
    done, total = recorder.steps["recover"]
    assert done == total
    change(copy, "recover", distill=True)
    again(copy)
    assert sha256(recovered / "adapter" / "adapter_model.safetensors") == distilled


def test_changed_data_repeats_everything(copy):
    with (copy / "train.csv").open("a", encoding="utf-8") as stream:
        stream.write("a very good film,positive\n")
    content = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(content | {"export": {"onnx": []}}), encoding="utf-8")
    recorder = again(copy)
    assert recorder.kept == []
    assert recorder.ran == ["tune", "prune", "recover", "merge", "measure"]


def test_a_damaged_stage_is_repeated_and_gives_the_same_bytes(copy):
    weights = copy / "out" / "stages" / "recovered" / "adapter" / "adapter_model.safetensors"
    good = sha256(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    recorder = again(copy)
    assert recorder.ran == ["recover"]
    assert sha256(weights) == good


def test_a_half_written_record_counts_as_missing(copy):
    record = copy / "out" / "stages" / "prune.json"
    record.write_text(record.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert again(copy).ran == ["prune"]


def test_fresh_repeats_everything(copy):
    content = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(content | {"export": {"onnx": []}}), encoding="utf-8")
    assert again(copy, fresh=True).kept == []


def test_without_pruning_the_tuned_model_is_merged(tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, prune=None, export={"onnx": []}, tune={"epochs": 1, "batch_size": 32})
    result = run(load_recipe(path), base=tmp_path)
    assert list(result.stages) == ["tune", "merge", "measure"]
    assert result.stages["merge"]["test"] == result.stages["tune"]["test"]


def test_an_output_folder_with_other_things_is_left_alone(tmp_path, model_folder):
    path = prepare(tmp_path, model_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        run(load_recipe(path), base=tmp_path)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_while_saving_a_stage_keeps_the_stages_before(copy, monkeypatch):
    change(copy, "recover", epochs=1)
    import dsee.artifact.save

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dsee.artifact.save, "write_manifest", full)
    with pytest.raises(DseeError, match="no space is left"):
        again(copy)
    monkeypatch.undo()
    recorder = again(copy)
    assert recorder.kept == ["tune", "prune"]


def start(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from dsee_command import main; main()", "run", str(folder / "recipe.yaml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.02)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_in_recover_the_next_run_goes_on_and_ends_the_same(finished, tmp_path, model_folder, sign, code):
    long = {"epochs": 40, "learning_rate": 5e-3, "batch_size": 4}
    prepare(tmp_path, model_folder, recover=long, export={"onnx": []})
    process = start(tmp_path)
    record = tmp_path / "out" / "stages" / "prune.json"
    wait_for(record, process)
    time.sleep(0.3)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert record.exists()
    assert not (tmp_path / "out" / "stages" / "recover.json").exists()
    if sign == signal.SIGINT:
        assert "stopped. Finished stages are kept" in errors
        assert "Traceback" not in errors
    # going on with the short recovery of the unbroken run has to end in the same bytes
    prepare(tmp_path, model_folder, export={"onnx": []})
    recorder = again(tmp_path)
    assert recorder.kept == ["tune", "prune"]
    weights = Path("out") / "model" / "model.safetensors"
    assert sha256(tmp_path / weights) == sha256(finished.folder / weights)
