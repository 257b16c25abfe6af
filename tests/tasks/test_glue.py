"""GLUE: its columns, splits, metrics and files of predictions."""

import numpy as np
import pytest
from glue_files import rows, write_glue, write_jsonl

from dsee.errors import InputError
from dsee.tasks import GLUE, DataSpec, load_text_data
from dsee.tasks.glue import predictions, write_submission
from dsee.tasks.kinds import KINDS, shown_metrics


def load(folder, name, seed=0, **more):
    return load_text_data(DataSpec(glue=name, dir=str(folder), **more), folder, seed)


@pytest.mark.parametrize("name", GLUE)
def test_the_official_validation_is_reported_and_the_epoch_is_chosen_on_training_rows(tmp_path, name):
    write_glue(tmp_path, name)
    data, task = load(tmp_path, name), GLUE[name]
    assert data.sizes == {"train": 36, "validation": 4, "test": 8}
    official = [row[task.text] for row in rows(task, 8)]
    assert list(data.test["text"]) == official
    assert sorted([*data.train["text"], *data.validation["text"]]) == sorted(r[task.text] for r in rows(task, 40))
    assert list(data.test["label"]) == [row["label"] for row in rows(task, 8)]
    assert ("text_pair" in data.test.column_names) == (task.pair is not None)
    assert data.labels == (list(task.labels) or ["score"])
    assert data.kind == task.kind
    assert {file: list(part["text"]) for file, part in data.unlabelled.items()} == {
        task.submission + ending: official[:6] for _, ending in task.parts
    }


def test_mnli_has_two_of_each(tmp_path):
    write_glue(tmp_path, "mnli")
    write_jsonl(tmp_path / "validation_mismatched.jsonl", rows(GLUE["mnli"], 5))
    data = load(tmp_path, "mnli")
    assert {name: len(part) for name, part in data.also.items()} == {"_mm": 5}
    assert list(data.unlabelled) == ["MNLI-m", "MNLI-mm"]


def test_labels_may_be_names(tmp_path):
    write_glue(tmp_path, "rte")
    named = [row | {"label": GLUE["rte"].labels[row["label"]]} for row in rows(GLUE["rte"], 8)]
    write_jsonl(tmp_path / "validation.jsonl", named)
    assert list(load(tmp_path, "rte").test["label"]) == [0, 1] * 4


def test_a_folder_of_all_tasks(tmp_path):
    (tmp_path / "cola").mkdir()
    write_glue(tmp_path / "cola", "cola")
    assert load(tmp_path, "cola").sizes["test"] == 8


def test_quotation_marks_of_tsv_are_characters(tmp_path):
    write_glue(tmp_path, "sst2")
    (tmp_path / "validation.jsonl").unlink()
    (tmp_path / "validation.tsv").write_text('sentence\tlabel\nan "odd film\t1\n"dull\t0\n', encoding="utf-8")
    assert list(load(tmp_path, "sst2").test["text"]) == ['an "odd film', '"dull']


def test_a_test_split_is_not_needed(tmp_path):
    write_glue(tmp_path, "wnli")
    (tmp_path / "test.jsonl").unlink()
    data = load(tmp_path, "wnli")
    assert data.unlabelled == {}
    assert data.notes == ["no split 'test': no file of predictions for GLUE's server"]


def test_a_missing_split_is_named(tmp_path):
    write_glue(tmp_path, "mnli")
    (tmp_path / "validation_mismatched.jsonl").unlink()
    with pytest.raises(InputError, match=r"holds no validation_mismatched.parquet.*the split 'validation_mismatched'"):
        load(tmp_path, "mnli")


def test_two_files_of_one_split(tmp_path):
    write_glue(tmp_path, "cola")
    (tmp_path / "train.csv").write_text("sentence,label\na,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train.csv and train.jsonl: which is the split 'train'"):
        load(tmp_path, "cola")


def test_no_row_of_a_test_split_can_be_left_out(tmp_path):
    write_glue(tmp_path, "cola")
    write_jsonl(tmp_path / "test.jsonl", [*rows(GLUE["cola"], 3, labelled=False), {"sentence": "", "label": -1}])
    with pytest.raises(InputError, match=r"test.jsonl, line 4: column 'sentence' is empty"):
        load(tmp_path, "cola", max_bad_rows=5)


def test_a_hub_that_cannot_be_reached_names_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"GLUE's stsb could not be loaded from the hub .*--data DIR"):
        load_text_data(DataSpec(glue="stsb"), tmp_path, 0)


def test_the_hubs_tables_are_those_of_the_files(tmp_path, monkeypatch):
    import datasets

    write_glue(tmp_path, "cola")
    asked = []

    def from_hub(name, config, streaming):
        asked.append((name, config, streaming))
        features = datasets.Features(
            {
                "sentence": datasets.Value("string"),
                "idx": datasets.Value("int64"),
                "label": datasets.ClassLabel(names=["unacceptable", "acceptable"]),
            }
        )
        splits = {"train": 40, "validation": 8, "test": 6}
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_list(rows(GLUE["cola"], count, name != "test"), features=features)
                for name, count in splits.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    found, expected = load_text_data(DataSpec(glue="cola"), tmp_path, 3), load(tmp_path, "cola", 3)
    assert asked == [("nyu-mll/glue", "cola", False)]
    for part in ("train", "validation", "test"):
        assert getattr(found, part).to_dict() == getattr(expected, part).to_dict()
    assert found.unlabelled["CoLA"].to_dict() == expected.unlabelled["CoLA"].to_dict()


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'sst2'"):
        DataSpec(glue="sst-2")


def test_glue_decides_the_columns():
    with pytest.raises(ValueError, match="glue decides train, label by itself"):
        DataSpec(glue="cola", train="t.csv", label="y")


@pytest.mark.parametrize("name", GLUE)
def test_a_submission(tmp_path, name):
    task = GLUE[name]
    classes = max(len(task.labels), 1)
    logits = np.random.default_rng(0).normal(3, 4, size=(50, classes)).astype(np.float32)
    assert write_submission(task, logits, tmp_path / f"{task.submission}.tsv") == 50
    lines = (tmp_path / f"{task.submission}.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    indices, said = zip(*(line.split("\t") for line in lines[1:]), strict=True)
    assert [int(i) for i in indices] == list(range(50))
    if name == "stsb":
        numbers = np.array([float(each) for each in said])
        assert (numbers.min(), numbers.max()) == (0.0, 5.0)
        np.testing.assert_allclose(numbers, np.clip(logits[:, 0], 0, 5), atol=5e-4)
    elif name in ("mnli", "qnli", "rte"):
        assert list(said) == [task.labels[i] for i in logits.argmax(1)]
    else:
        assert list(said) == [str(i) for i in logits.argmax(1)]


def test_labels_of_entailment_stand_in_the_order_of_the_hub():
    logits = np.array([[1.0, 0.0]])
    assert predictions(GLUE["qnli"], logits) == ["entailment"]
    assert predictions(GLUE["wnli"], logits) == ["0"]
    assert GLUE["wnli"].labels[1] == "entailment"


def test_the_official_metrics():
    official = {
        "cola": ("matthews",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "mnli": ("accuracy", "accuracy_mm"),
    }
    for name, task in GLUE.items():
        assert task.metrics == official.get(name, ("accuracy",))
        assert task.metrics[0] in KINDS[task.kind].known
    assert shown_metrics("classification", "f1", GLUE["mrpc"].metrics, 2) == ("f1", "accuracy")


@pytest.mark.parametrize(("wanted", "labels", "said"), [("f1", 3, "needs two classes"), ("f1_makro", 2, "f1_macro")])
def test_a_metric_that_is_not_there(wanted, labels, said):
    with pytest.raises(InputError, match=said):
        shown_metrics("classification", wanted, None, labels)


def test_real_glue_files_where_they_are_at_hand(shared_data):
    for name in ("stsb", "mrpc", "cola"):
        folder = shared_data / name
        data = load(folder, name)
        assert len(data.test) == {"stsb": 1500, "mrpc": 408, "cola": 1043}[name]
        (part,) = data.unlabelled.values()
        assert len(part) == {"stsb": 1379, "mrpc": 1725, "cola": 1063}[name]


@pytest.fixture
def shared_data():
    from pathlib import Path

    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not (folder / "stsb").is_dir():
        pytest.skip("the project's data sets are not at hand")
    return folder
