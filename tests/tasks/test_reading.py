"""Tables in every format, and what is said of broken ones."""

import json
from itertools import chain

import pytest

from conftest import sentences, write_csv
from dsee.errors import InputError
from dsee.tasks import DataSpec, load_text_data
from dsee.tasks.places import locate
from dsee.tasks.table import read_table


def load(tmp_path, seed=0, **spec):
    return load_text_data(DataSpec(train="train.csv", **spec), tmp_path, seed)


def write(tmp_path, suffix, rows):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        write_csv(path, rows)
    elif suffix == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{t}\t{label}\n" for t, label in rows), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows), encoding="utf-8")
    else:
        table = {"text": [t for t, _ in rows], "label": [label for _, label in rows]}
        parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows = [*sentences(20), ("NA", "positive"), ("ünïcödé \u2013 “quoted”", "negative")]
    table = read_table(write(tmp_path, suffix, rows))
    assert list(zip(table["text"], table["label"], strict=True)) == rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_missing_column_names_the_nearest(tmp_path, suffix):
    path = write(tmp_path, suffix, sentences(10))
    with pytest.raises(InputError, match=r"no column 'txt' \(data.text\). Did you mean 'text'"):
        load_text_data(DataSpec(train=path.name, text="txt"), tmp_path, 0)


def test_a_missing_file_names_the_nearest(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(10))
    with pytest.raises(InputError, match=r"no such file. Did you mean 'train.csv'"):
        load_text_data(DataSpec(train="trian.csv"), tmp_path, 0)


def test_an_empty_file(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"train.csv is empty: it has 0 bytes"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_without_rows(tmp_path, suffix):
    path = write(tmp_path, suffix, [])
    with pytest.raises(InputError, match=r"no rows|is empty"):
        load_text_data(DataSpec(train=path.name), tmp_path, 0)


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\nfine,1\ncaf\u00e9,0\n".encode("latin1"))
    with pytest.raises(InputError, match=r"train.csv, line 3: not UTF-8 \(byte 0xe9\)"):
        load(tmp_path)


def test_text_cut_off_inside_a_character(tmp_path):
    (tmp_path / "train.csv").write_bytes("text,label\ncaf\u00e9".encode()[:-1])
    with pytest.raises(InputError, match=r"cut off"):
        load(tmp_path)


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "train.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"\.xlsx is not a known kind of table. Known: .csv"):
        load_text_data(DataSpec(train="train.xlsx"), tmp_path, 0)


def test_a_broken_parquet_file(tmp_path):
    path = write(tmp_path, ".parquet", sentences(10))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"train.parquet could not be read as parquet"):
        load_text_data(DataSpec(train="train.parquet"), tmp_path, 0)


def test_a_broken_json_line(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": \n', encoding="utf-8")
    with pytest.raises(InputError, match=r"train.jsonl, line 2: not JSON"):
        load_text_data(DataSpec(train="train.jsonl"), tmp_path, 0)


@pytest.mark.parametrize("hole", ["", "   "])
def test_a_row_without_text_is_named(tmp_path, hole):
    write_csv(tmp_path / "train.csv", [*sentences(4), (hole, "positive")])
    with pytest.raises(InputError, match=r"train.csv, line 6: column 'text' is empty"):
        load(tmp_path)


def test_a_column_of_numbers_is_no_text(tmp_path):
    write_csv(tmp_path / "train.csv", [(i, "positive" if i % 2 else "negative") for i in range(10)])
    with pytest.raises(InputError, match=r"line 2: column 'text' holds 0, which is not text"):
        load(tmp_path)


def test_a_label_that_training_does_not_know(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(40))
    write_csv(tmp_path / "test.csv", [("good film", "positive"), ("dull plot", "negativ")])
    with pytest.raises(
        InputError, match=r"test.csv, line 3: label 'negativ' is not in the training file. Did you mean 'negat"
    ):
        load(tmp_path, test="test.csv")


def test_a_label_outside_the_recipes_list(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(40))
    with pytest.raises(InputError, match=r"(?s)20 x unknown label.*line 2: label 'negative' is not in data.labels"):
        load(tmp_path, labels=["positive", "neutral"])


def test_one_label_is_not_a_task(tmp_path):
    write_csv(tmp_path / "train.csv", [("a b", "positive"), ("c d", "positive")])
    with pytest.raises(InputError, match=r"only one label \('positive'\)"):
        load(tmp_path)


def test_too_few_rows_to_split(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(3))
    with pytest.raises(InputError, match=r"too few to cut off"):
        load(tmp_path)


def test_parts_are_disjoint_complete_and_stratified(tmp_path):
    rows = [(f"{text} {i}", label) for i, (text, label) in enumerate(sentences(100))]
    write_csv(tmp_path / "train.csv", rows)
    data = load(tmp_path, split={"validation": 0.1, "test": 0.2})
    parts = [list(part["text"]) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [70, 10, 20]
    assert sorted(chain.from_iterable(parts)) == sorted(text for text, _ in rows)
    assert sum(data.test["label"]) == 10
    assert data.labels == ["negative", "positive"]


def test_the_split_depends_on_the_seed_alone(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(100))
    first, again, other = (list(load(tmp_path, seed=s).test["text"]) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_given_files_are_not_split(tmp_path):
    for name, count in (("train", 30), ("validation", 12), ("test", 14)):
        write_csv(tmp_path / f"{name}.csv", sentences(count))
    data = load(tmp_path, validation="validation.csv", test="test.csv")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 12, 14]


def test_number_labels_sort_as_numbers(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"word {i}", [2, 10, 1][i % 3]) for i in range(30)])
    assert load(tmp_path).labels == ["1", "2", "10"]


def test_pairs(tmp_path):
    rows = [(t, t[::-1], label) for t, label in sentences(40)]
    write_csv(tmp_path / "train.csv", rows, header=("first", "second", "label"))
    data = load(tmp_path, text="first", text_pair="second")
    assert all(b == a[::-1] for a, b in zip(data.train["text"], data.train["text_pair"], strict=True))


def test_where_and_deduplicate(tmp_path):
    rows = [(t, label, "web" if i % 4 else "book") for i, (t, label) in enumerate(sentences(80) + sentences(80))]
    write_csv(tmp_path / "train.csv", rows, header=("text", "label", "source"))
    kept = {t for t, _, source in rows if source == "web"}
    data = load(tmp_path, where={"source": "web"}, deduplicate=True)
    texts = list(chain.from_iterable(part["text"] for part in (data.train, data.validation, data.test)))
    assert sorted(texts) == sorted(kept)
    assert data.dropped == sum(source == "web" for *_, source in rows) - len(kept)


def test_where_that_fits_nothing(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(10))
    with pytest.raises(InputError, match=r"no row has label='maybe'"):
        load(tmp_path, where={"label": "maybe"})


def test_a_package_resource_is_found_without_importing_the_package(tmp_path, monkeypatch):
    package = tmp_path / "noisy_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "rows.csv").write_text("text,label\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:noisy_package/data/rows.csv", tmp_path) == package / "data" / "rows.csv"


def test_a_package_that_is_not_installed(tmp_path):
    with pytest.raises(InputError, match=r"pip install no-such-package"):
        locate("package:no_such_package/x", tmp_path)
