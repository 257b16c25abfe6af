"""Regression, several labels, data sets that datasets saved, and what becomes of long texts."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from conftest import sentences, tiny_tokenizer, write_csv
from dsee.errors import InputError
from dsee.tasks import DataSpec, load_text_data
from dsee.tasks.encode import Encoded


def load(tmp_path, train="train.csv", **spec):
    return load_text_data(DataSpec(train=train, **spec), tmp_path, 0)


def whole(data, column):
    return [value for part in (data.train, data.validation, data.test) for value in part[column]]


def test_numbers_are_learned_as_they_are(tmp_path):
    rows = [(f"film {i}", i / 8) for i in range(40)]
    write_csv(tmp_path / "train.csv", rows)
    data = load(tmp_path, kind="regression")
    assert sorted(whole(data, "label")) == [value for _, value in rows]
    assert (data.labels, data.sizes) == (["score"], {"train": 28, "validation": 4, "test": 8})
    encoded = Encoded(data.test, tiny_tokenizer(), 8, kind="regression")
    assert encoded.labels.tolist() == list(data.test["label"])


def test_many_numbers_are_no_classes(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"film {i}", i / 8) for i in range(40)])
    with pytest.raises(InputError, match=r"holds 40 different numbers.*set data.kind: regression"):
        load(tmp_path)


TOPICS = [["plot"], ["actor", "plot"], [], ["scene"]]
WANTED = {"actor": [1, 0, 0], "plot": [0, 1, 0], "scene": [0, 0, 1]}


def indicators(topics):
    return [float(any(WANTED[t][i] for t in topics)) for i in range(3)]


@pytest.mark.parametrize("written", ["separator", "list", "columns"])
def test_several_labels_three_ways(tmp_path, written):
    rows = [(f"film {i}", TOPICS[i % 4]) for i in range(40)]
    spec = {"kind": "multi-label"}
    if written == "separator":
        write_csv(tmp_path / "train.csv", [(text, "; ".join(topics)) for text, topics in rows])
        spec = {"separator": ";"}
    elif written == "list":
        lines = [json.dumps({"text": text, "label": topics}) + "\n" for text, topics in rows]
        (tmp_path / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        spec["train"] = "train.jsonl"
    else:
        cells = [(text, *(int(each) for each in indicators(topics))) for text, topics in rows]
        write_csv(tmp_path / "train.csv", cells, header=("text", *WANTED))
        spec["label"] = list(WANTED)
    data = load(tmp_path, **spec)
    assert (data.kind, data.labels) == ("multi-label", list(WANTED))
    found = dict(zip(whole(data, "text"), whole(data, "label"), strict=True))
    assert found == {text: indicators(topics) for text, topics in rows}


def test_a_label_that_is_none_of_several(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"film {i}", "plot;actor") for i in range(20)] + [("x", "plto")])
    with pytest.raises(InputError, match=r"line 22: label 'plto' is not in data.labels. Did you mean 'plot'"):
        load(tmp_path, separator=";", labels=["actor", "plot"])


def test_a_column_that_is_neither_yes_nor_no(tmp_path):
    write_csv(tmp_path / "train.csv", [("a", 1, 0), ("b", 0, 2)], header=("text", "x", "y"))
    with pytest.raises(InputError, match=r"line 3: column 'y' holds '2', which is neither 0 nor 1"):
        load(tmp_path, label=["x", "y"])


def test_a_text_is_no_list_of_labels(tmp_path):
    write_csv(tmp_path / "train.csv", [("a", "x,y")])
    with pytest.raises(InputError, match=r"is no list of labels. Set data.separator"):
        load(tmp_path, kind="multi-label")


def saved(folder):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    rows = [{"text": text, "label": int(label == "positive")} for text, label in sentences(40)]
    hidden = [row | {"label": -1} for row in rows[:5]]
    parts = {"train": rows, "test": hidden}
    DatasetDict({k: Dataset.from_list(v, features=features) for k, v in parts.items()}).save_to_disk(folder)


def test_a_folder_that_datasets_saved(tmp_path):
    saved(tmp_path / "films")
    data = load_text_data(DataSpec(name="films"), tmp_path, 0)
    assert data.labels == ["negative", "positive"]
    assert data.sizes == {"train": 28, "validation": 4, "test": 8}
    assert data.notes == ["the split 'test' of films has no labels, so it is not reported on"]
    with pytest.raises(InputError, match=r"split 'test', row 1: column 'label' is empty"):
        load_text_data(DataSpec(name="films", test="test"), tmp_path, 0)
    with pytest.raises(InputError, match=r"data.validation: films has no split 'dev'. It has: train, test"):
        load_text_data(DataSpec(name="films", validation="dev"), tmp_path, 0)


def test_a_hub_name_without_a_hub(tmp_path):
    with pytest.raises(InputError, match=r"data.name: some/films could not be loaded from the hub"):
        load_text_data(DataSpec(name="some/films"), tmp_path, 0)


def test_long_texts_are_found_by_their_tokens():
    part = Dataset.from_dict({"text": ["good film", "good " * 20, "bad"], "label": [1, 1, 0]})
    cut = Encoded(part, tiny_tokenizer(), 8)
    assert cut.long == {1: 22}
    assert [len(feature["input_ids"]) for feature in cut.features] == [4, 8, 3]
    left = Encoded(part, tiny_tokenizer(), 8, skip_long=True)
    assert left.labels.tolist() == [1, 0]


@pytest.mark.parametrize("pairs", [False, True])
def test_cutting_is_the_tokenizers_own(pairs):
    texts = [text * 4 for text, _ in sentences(12)]
    columns = {"text": texts, "label": [0] * 12} | ({"text_pair": texts[::-1]} if pairs else {})
    found = Encoded(Dataset.from_dict(columns), tiny_tokenizer(), 12)
    expected = tiny_tokenizer()(texts, texts[::-1] if pairs else None, truncation=True, max_length=12)
    assert [feature["input_ids"] for feature in found.features] == expected["input_ids"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"train": "t", "kind": "regression", "separator": ";"}, "are multi-label, not regression"),
        ({"train": "t", "label": ["a"]}, "names two columns or more"),
        ({"train": "t", "kind": "regression", "labels": ["a"]}, "a regression has numbers"),
        ({}, "say where the data is"),
        ({"train": "t", "streaming": True}, "give validation and test files"),
        (
            {"train": "t", "validation": "v", "test": "u", "streaming": True, "labels": [0, 1], "deduplicate": True},
            "remember every text",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        DataSpec(**spec)
