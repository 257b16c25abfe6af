"""Rows that cannot be used: named with file and line, counted, tolerated up to a limit."""

import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import sentences, write_csv
from dsee.errors import InputError
from dsee.tasks import DataSpec, load_text_data
from dsee.tasks.bad_rows import BadRows, RowError, in_short
from dsee.tasks.sources import open_source

GOOD = [f"good film {i},{'positive' if i % 2 else 'negative'}" for i in range(40)]


def csv(tmp_path, lines, header="text,label"):
    (tmp_path / "train.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def load(tmp_path, train="train.csv", **spec):
    return load_text_data(DataSpec(train=train, **spec), tmp_path, 0)


def test_the_line_is_the_files_own(tmp_path):
    lines = ['"two\nlines",positive', "", " ", *GOOD, '"three\n\nlines",negative', ",positive"]
    csv(tmp_path, lines)
    where = (tmp_path / "train.csv").read_text(encoding="utf-8").splitlines().index(",positive") + 1
    with pytest.raises(InputError, match=rf"train.csv, line {where}: column 'text' is empty.*max_bad_rows: 1"):
        load(tmp_path)


def test_all_kinds_are_counted_and_the_first_ones_listed(tmp_path):
    csv(tmp_path, [*GOOD, ",positive", "a,", "a,b,c", "lone", *(f"x,label{i}" for i in range(5))])
    with pytest.raises(InputError) as caught:
        load(tmp_path, labels=["positive", "negative"], max_bad_rows=8)
    said = str(caught.value)
    assert said.startswith("9 rows cannot be used (1 x missing label, 1 x missing text, 5 x unknown label, 2 x unread")
    assert "train.csv, line 44: 3 cells where the header has 2." in said
    assert "and 3 more" in said
    assert "data.max_bad_rows: 9" in said


def test_tolerated_rows_are_left_out_and_listed(tmp_path):
    csv(tmp_path, [*GOOD[:10], ",positive", "a,b,c", *GOOD[10:]])
    data = load(tmp_path, max_bad_rows=2)
    texts = [text for part in (data.train, data.validation, data.test) for text in part["text"]]
    assert sorted(texts) == sorted(line.split(",")[0] for line in GOOD)
    notes = data.bad.notes
    assert notes[0] == "left out 2 bad row(s): 1 x missing text, 1 x unreadable"
    assert "train.csv, line 12: column 'text' is empty." in notes[1]


def test_rows_of_json_lines(tmp_path):
    rows = [json.dumps({"text": f"film {i}", "label": i % 2}) for i in range(40)]
    bad = ['{"text": 5, "label": 0}', '{"label": 0}', "[1]", "{", '{"text": "a", "label": null}', '{"text": "a"}']
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, "", *bad]) + "\n", encoding="utf-8")
    data = load(tmp_path, "train.jsonl", max_bad_rows=6)
    assert dict(data.bad.counts) == {"wrong type": 1, "missing text": 1, "unreadable": 2, "missing label": 2}
    assert "line 42: column 'text' holds 5, which is not text." in data.bad.said[0]


def test_rows_of_a_json_array_have_the_line_they_begin_on(tmp_path):
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(40)]
    (tmp_path / "train.json").write_text(json.dumps([*rows, {"text": "", "label": 1}], indent=1), encoding="utf-8")
    with pytest.raises(InputError, match=r"train.json, line 162: column 'text' is empty"):
        load(tmp_path, "train.json")


def test_rows_of_parquet_are_numbered(tmp_path):
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(40)]
    Dataset.from_list([*rows, {"text": None, "label": 1}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet, row 41: column 'text' is empty"):
        load(tmp_path, "train.parquet")


def test_a_quotation_mark_that_is_never_closed_does_not_eat_the_file(tmp_path):
    csv(tmp_path, [*GOOD[:3], '"good film,positive', *GOOD[3:]])
    with pytest.raises(InputError, match=r"train.csv, line 5: a quotation mark is opened and never closed.*quotes: f"):
        load(tmp_path, max_bad_rows=100)
    assert load(tmp_path, quotes=False).sizes["train"] == 29


def test_a_number_is_asked_for(tmp_path):
    csv(tmp_path, [*(f"film {i},{i / 7}" for i in range(40)), "a,good", "b,nan", "c,inf"])
    with pytest.raises(
        InputError, match=r"(?s)3 x wrong type.*line 42: column 'label' holds 'good', which is not a num"
    ):
        load(tmp_path, kind="regression")


def test_only_bad_rows(tmp_path):
    csv(tmp_path, [",positive", ",negative"])
    with pytest.raises(InputError, match="no row"):
        load(tmp_path, max_bad_rows=5)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8), st.sampled_from("ab")
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_row_is_used_or_named(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    path = write_csv(folder / "t.csv", [*rows, ("end", "a")])
    source = open_source(path)
    text = path.read_bytes().decode()
    for number, values in source.rows():
        line = text.split("\n")[number - 1]
        assert values["text"].split("\n")[0].replace('"', '""') in line
    assert [(v["text"], v["label"]) for _, v in source.rows()] == [*rows, ("end", "a")]


def test_the_report_keeps_a_thousand():
    bad = BadRows(limit=2000)
    for i in range(1500):
        bad.add(f"f, line {i}", RowError("missing text", "empty."))
    bad.check()
    assert (len(bad.said), bad.counts.total(), bad.notes[-1]) == (1000, 1500, "  and 500 more")
    short = in_short(["one", *bad.notes, "two"])
    assert short[:3] == ["one", "left out 1500 bad row(s): 1500 x missing text", "  f, line 0: empty."]
    assert short[-2:] == ["  and more; the report lists them", "two"]
    assert len(short) == 10


def test_columns_are_mapped_and_labels_renamed(tmp_path):
    rows = [(text, "neg" if label == "negative" else "1") for text, label in sentences(40)]
    write_csv(tmp_path / "train.csv", rows, header=("review", "stars"))
    data = load(tmp_path, text="review", label="stars", label_map={"neg": "negative", 1: "positive"})
    assert data.labels == ["negative", "positive"]
    write_csv(tmp_path / "train.csv", rows, header=("review", "review"))
    with pytest.raises(InputError, match="two columns 'review'"):
        load(tmp_path, text="review", label="review")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, suffix):
    rows = {".csv": "text,label\na film,0\n", ".jsonl": '{"text": "a film", "label": "0"}\n'}
    text = rows.get(suffix, f"[{rows['.jsonl']}]")
    path = tmp_path / f"train{suffix}"
    path.write_text(text, encoding="utf-8-sig")
    source = open_source(path)
    assert source.columns == ["text", "label"]
    assert [values for _, values in source.rows()] == [{"text": "a film", "label": "0"}]
