"""The chain on tasks that are no plain classification: what is learned, chosen by, reported and handed in."""

import json

import numpy as np
import pytest
import torch
import yaml

import dsee
from chain import RECIPE, Recorder
from conftest import sentences, tiny_tokenizer, write_csv
from dsee.errors import InputError
from dsee.report import write_report
from dsee.training import load_recipe, run
from dsee.training.setting import Setting

SHORT = RECIPE | {
    "tune": {"epochs": 3, "learning_rate": 1e-2, "batch_size": 8},
    "recover": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8, "distill": True},
    "export": {"onnx": []},
}


def carry_out(folder, model_folder, data, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SHORT | {"model": str(model_folder), "data": data} | changes), encoding="utf-8")
    recipe, progress = load_recipe(path), Recorder()
    result = run(recipe, base=folder, progress=progress)
    for name, (done, total) in progress.steps.items():
        assert done == total, name
    return recipe, result, progress


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_stsb(folder):
    """Scores that the judging word decides."""
    rows = [
        {"sentence1": text, "sentence2": text, "label": 4.5 if label == "positive" else 0.5}
        for text, label in sentences(160)
    ]
    write_rows(folder / "train.jsonl", rows[:120])
    write_rows(folder / "validation.jsonl", rows[120:])
    write_rows(folder / "test.jsonl", [row | {"label": -1.0} for row in rows[:12]])


@pytest.fixture(scope="module")
def stsb(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("stsb")
    write_stsb(folder)
    return folder, *carry_out(folder, model_folder, {"glue": "stsb", "dir": str(folder)})


def test_a_regression_goes_through_the_whole_chain(stsb):
    folder, _, result, progress = stsb
    assert progress.ran == ["tune", "prune", "recover", "merge", "measure", "submit"]
    assert result.metrics == ("pearson", "spearman")
    assert result.stages["tune"]["test"]["pearson"] > 80
    model = dsee.load(folder / "out" / "model")
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)


def test_the_reported_correlation_is_that_of_the_official_validation(stsb):
    folder, _, result, _ = stsb
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    texts, pairs = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    encoded = tiny_tokenizer()(texts, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = dsee.load(folder / "out" / "model")(**encoded).logits[:, 0].numpy()
    expected = 100 * np.corrcoef(found, [row["label"] for row in rows])[0, 1]
    assert result.stages["merge"]["test"]["pearson"] == pytest.approx(expected, abs=1e-3)
    assert result.sizes == {"train": 108, "validation": 12, "test": 40}


def test_the_submission_is_the_models_answers_in_order(stsb):
    folder, recipe, result, _ = stsb
    (path,) = result.predictions
    assert path == folder / "out" / "glue" / "STS-B.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    assert [int(line.split("\t")[0]) for line in lines[1:]] == list(range(12))
    part = Setting(recipe, folder, folder / "out").data.unlabelled["STS-B"]
    encoded = tiny_tokenizer()(list(part["text"]), list(part["text_pair"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = dsee.load(folder / "out" / "model")(**encoded).logits[:, 0].clip(0, 5).tolist()
    assert [float(line.split("\t")[1]) for line in lines[1:]] == pytest.approx(found, abs=2e-3)


def test_the_report_names_its_figures(stsb):
    folder, recipe, result, _ = stsb
    table = write_report(result, recipe, result.sizes)
    assert [row.metric for row in table] == ["pearson"] * 3
    page = (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert page.splitlines()[2].startswith("|  | Pearson | Spearman | trainable |")
    assert "Pearson and Spearman are of 40 held-out sentences" in page
    assert "`glue/STS-B.tsv`" in page


def test_a_lost_submission_is_written_again(stsb):
    folder, recipe, result, _ = stsb
    path = result.predictions[0]
    text = path.read_text(encoding="utf-8")
    path.unlink()
    progress = Recorder()
    run(recipe, base=folder, progress=progress)
    assert progress.ran == ["submit"]
    assert path.read_text(encoding="utf-8") == text


def test_predicting_a_number(stsb, dsee_command):
    folder = stsb[0]
    code, out, err = dsee_command("predict", folder / "out", "--json", "good film")
    assert code == 0, err
    row = json.loads(out)
    with torch.no_grad():
        model = dsee.load(folder / "out" / "model")
        value = model(**tiny_tokenizer()(["good film"], return_tensors="pt")).logits.item()
    assert row["label"] == "score"
    assert row["scores"]["score"] == pytest.approx(value, abs=1e-4)


def test_predicting_pairs_of_a_table(stsb, dsee_command):
    folder = stsb[0]
    table = ("--file", folder / "validation.jsonl", "--column", "sentence1")
    code, out, err = dsee_command("predict", folder / "out", *table, "--pair-column", "sentence2", "--json")
    assert code == 0, err
    found = [json.loads(line)["scores"]["score"] for line in out.splitlines()]
    wanted = [json.loads(line)["label"] for line in (folder / "validation.jsonl").read_text("utf-8").splitlines()]
    expected = stsb[2].stages["merge"]["test"]["pearson"]
    assert 100 * np.corrcoef(found, wanted)[0, 1] == pytest.approx(expected, abs=1e-2)
    code, _, err = dsee_command("predict", folder / "out", "good film", "--pair-column", "sentence2")
    assert code == 2
    assert "--pair-column names a column of a table" in err.replace("\n", " ")


def topics(folder, count=160):
    """Two questions at once: is it praise, and is it about films."""
    rows = []
    for text, label in sentences(count):
        given = [name for name, holds in (("praise", label == "positive"), ("film", "film" in text)) if holds]
        rows.append((text, "|".join(given)))
    return write_csv(folder, rows)


def test_several_labels_from_a_stream(tmp_path, model_folder):
    topics(tmp_path / "train.csv")
    with (tmp_path / "train.csv").open("a", encoding="utf-8") as stream:
        stream.write(",film\n")
    for name in ("validation", "test"):
        topics(tmp_path / f"{name}.csv", 40)
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    data = files | {"separator": "|", "labels": ["film", "praise"], "streaming": True, "max_bad_rows": 1}
    steps = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 45, "eval_steps": 20}
    changes = {"tune": steps, "recover": steps | {"max_steps": 10, "distill": True}}
    recipe, result, _ = carry_out(tmp_path, model_folder, data, **changes)
    assert len(result.stages["tune"]["validation"]) == 3
    assert result.metrics == ("f1_micro", "f1_macro")
    assert result.stages["tune"]["test"]["f1_micro"] > 70
    assert result.sizes == {"validation": 40, "test": 40}
    assert dsee.load(tmp_path / "out" / "model").config.problem_type == "multi_label_classification"
    write_report(result, recipe, result.sizes)
    assert "train.csv, line 162: column 'text' is empty." in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_a_stream_needs_an_end(tmp_path, model_folder):
    data = {"train": "a.csv", "validation": "b.csv", "test": "c.csv", "labels": [0, 1], "streaming": True}
    with pytest.raises(InputError, match=r"nobody knows how long a stream is; set tune.max_steps"):
        carry_out(tmp_path, model_folder, data)


def test_mnli_reports_both_parts(tmp_path, model_folder):
    rows = [
        {"premise": text, "hypothesis": text, "label": 0 if label == "positive" else 2} for text, label in sentences(90)
    ]
    rows[1]["label"] = rows[3]["label"] = 1
    write_rows(tmp_path / "train.jsonl", rows[:60])
    write_rows(tmp_path / "validation_matched.jsonl", rows[60:80])
    write_rows(tmp_path / "validation_mismatched.jsonl", rows[80:])
    write_rows(tmp_path / "test_matched.jsonl", rows[:5])
    write_rows(tmp_path / "test_mismatched.jsonl", rows[:3])
    changes = {"prune": None, "tune": SHORT["tune"] | {"epochs": 1}, "recover": {}}
    data = {"glue": "mnli", "dir": ".", "split": {"validation": 0.3}}
    _, result, _ = carry_out(tmp_path, model_folder, data, **changes)
    assert result.metrics == ("accuracy", "accuracy_mm")
    assert [path.name for path in result.predictions] == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    said = [line.split("\t")[1] for line in result.predictions[1].read_text(encoding="utf-8").splitlines()[1:]]
    assert len(said) == 3
    assert set(said) <= {"entailment", "neutral", "contradiction"}
    counts = result.stages["tune"]["test"]["accuracy_mm"] / 10
    assert counts == pytest.approx(round(counts))


def test_a_metric_that_is_less_the_better(tmp_path, model_folder):
    write_stsb(tmp_path)
    changes = {"prune": None, "recover": {}, "metric": "mse"}
    _, result, _ = carry_out(tmp_path, model_folder, {"glue": "stsb", "dir": "."}, **changes)
    assert result.metrics == ("mse", "pearson", "spearman")
    log = [entry["mse"] for entry in result.stages["tune"]["validation"]]
    from dsee.training.fit import evaluate

    recipe = load_recipe(tmp_path / "recipe.yaml")
    setting = Setting(recipe, tmp_path, tmp_path / "out")
    model = dsee.load(tmp_path / "out" / "stages" / "tuned")
    assert evaluate(model, setting.parts["validation"], setting.collate)["mse"] == pytest.approx(min(log), rel=1e-5)


def test_too_long_is_an_error_if_one_wishes(tmp_path, model_folder):
    write_csv(tmp_path / "train.csv", [*sentences(60), ("good " * 40, "positive")])
    with pytest.raises(InputError, match=r"train.csv, line 62: 42 tokens, and max_length is 32"):
        carry_out(tmp_path, model_folder, {"train": "train.csv", "too_long": "error"})


def test_long_texts_left_out_are_listed(tmp_path, model_folder):
    write_csv(tmp_path / "train.csv", [*sentences(60), ("good " * 40, "positive")])
    data = {"train": "train.csv", "too_long": "skip"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SHORT | {"model": str(model_folder), "data": data}), encoding="utf-8")
    setting = Setting(load_recipe(path), tmp_path, tmp_path / "out")
    assert sum(setting.sizes.values()) == 60
    assert any("left out 1 of" in note for note in setting.notes)
    assert any(note.endswith("train.csv, line 62: 42 tokens") for note in setting.notes)


def test_data_on_the_command_line(tmp_path, model_folder, dsee_command):
    path = tmp_path / "recipe.yaml"
    recipe = SHORT | {"model": str(model_folder), "data": {"glue": "stsb"}}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code, _, err = dsee_command("run", path, "--data", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere is no folder" in err
    code, _, err = dsee_command("run", path)
    assert code == 2
    assert "--data DIR" in err.replace("\n", " ")


@pytest.mark.slow
def test_onnx_of_a_regression_answers_with_its_number(tmp_path, model_folder):
    from dsee.runtime import OnnxModel

    write_stsb(tmp_path)
    changes = {"prune": None, "recover": {}, "export": {"onnx": ["fp32", "int8"]}}
    _, result, _ = carry_out(tmp_path, model_folder, {"glue": "stsb", "dir": "."}, **changes)
    assert result.stages["export"]["fp32"]["test"]["pearson"] == pytest.approx(
        result.stages["merge"]["test"]["pearson"], abs=0.01
    )
    assert "pearson" in result.stages["export"]["int8"]["test"]
    found = OnnxModel(tmp_path / "out" / "onnx-fp32")
    assert (found.kind, found.labels) == ("regression", ["score"])
    assert "print(float(row[0]))" in (tmp_path / "out" / "onnx-fp32" / "README.md").read_text(encoding="utf-8")
