"""Reading files of tasks of writing, and what is wrong with them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.errors import InputError
from dsee.tasks.bad_rows import BadRows
from dsee.tasks.generation import Example, GenerationSpec, load_generation_data
from dsee.tasks.generation.parts import _cut_off
from dsee.tasks.generation.rows import examples, open_parts
from dsee.tasks.spec import DataSpec
from writing_tools import rows, write_jsonl


def load(folder, content, kind="data-to-text", data=None, **spec):
    write_jsonl(folder / "train.jsonl", content)
    return load_generation_data(DataSpec(train="train.jsonl", **(data or {})), GenerationSpec(**spec), kind, folder, 0)


def test_columns_and_references(tmp_path):
    found = load(tmp_path, rows(40), references="references")
    e = found.train[0]
    assert e.prompt.startswith("name : ")
    assert e.references == (e.target, e.target.replace("the ", "").replace("serves", "has"))
    assert load(tmp_path, rows(40)).test[0].references == (load(tmp_path, rows(40)).test[0].target,)
    assert sum(found.sizes.values()) == 40


def test_columns_of_data_are_linearised_and_empty_ones_left_out(tmp_path):
    content = rows(40) + [{**row, "food": ""} for row in rows(40, seed=9)]
    found = load(tmp_path, content, source=["name", "food"])
    assert all(
        e.prompt.startswith("name : ") and e.prompt.count("food") <= 1 and "None" not in e.prompt for e in found.train
    )
    assert any("|" in e.prompt for e in found.train)
    assert any("|" not in e.prompt for e in found.train)


def test_instructions(tmp_path):
    found = load(
        tmp_path,
        [{"ask": r["source"], "say": r["target"]} for r in rows(40)],
        "instruction",
        prompt="ask",
        response="say",
    )
    assert found.train[0].references == (found.train[0].target,)


def test_plain_text_from_a_text_file_and_its_end_is_the_test_part(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"line {i}\n" for i in range(100)), encoding="utf-8")
    found = load_generation_data(DataSpec(train="book.txt"), GenerationSpec(), "language-modelling", tmp_path, 0)
    assert [e.target for e in found.test] == [f"line {i}\n" for i in range(80, 100)]
    assert [e.target for e in found.train + found.validation] == [f"line {i}\n" for i in range(80)]


def test_repeated_rows_are_dropped_on_request_and_counted(tmp_path):
    found = load(tmp_path, rows(40) + rows(40), data={"deduplicate": True})
    assert found.dropped >= 40
    assert len({(e.prompt, e.target) for e in found.train}) == len(found.train)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=60), st.integers(0, 3))
def test_no_prompt_is_in_two_parts(prompts, seed):
    examples = [Example(prompt, f"t{i}", (f"t{i}",), "rows") for i, prompt in enumerate(prompts)]
    if len(set(prompts)) < 3:
        return
    kept, taken = _cut_off(examples, 1, seed, "test", "data-to-text")
    assert not {e.prompt for e in kept} & {e.prompt for e in taken}
    assert sorted(kept + taken, key=lambda e: e.target) == sorted(examples, key=lambda e: e.target)
    assert (kept, taken) == _cut_off(examples, 1, seed, "test", "data-to-text")


@pytest.mark.parametrize(
    ("change", "spec", "said"),
    [
        ({"target": " "}, {}, r"train\.jsonl, line 3: column 'target' is empty"),
        ({"target": None}, {}, r"line 3: column 'target' is empty"),
        ({"references": []}, {"target": "sorce"}, r"no column 'sorce' \(generation.target\).*Did you mean 'source'"),
        (
            {"references": ["a", ""]},
            {"references": "references"},
            r"line 3: .*no list of texts \(generation.references\)",
        ),
        ({"name": "", "food": " "}, {"source": ["name", "food"]}, r"line 3: all of its columns name, food are empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, spec, said):
    content = rows(20)
    content[2] = content[2] | change
    with pytest.raises(InputError, match=said):
        load(tmp_path, content, **spec)


def test_a_number_is_no_text(tmp_path):
    with pytest.raises(InputError, match="line 1: column 'target' holds 3, which is not text"):
        load(tmp_path, [{"source": "a", "target": 3}] * 5)


def test_too_few_rows_to_split(tmp_path):
    with pytest.raises(InputError, match=r"too few to cut off .* data\.test"):
        load(tmp_path, rows(1))


def test_where_keeps_rows_or_says_that_none_fits(tmp_path):
    found = load(tmp_path, rows(200), data={"where": {"food": "french"}})
    assert all("french" in e.target for e in found.train)
    with pytest.raises(InputError, match=r"no row has food='greek' \(data.where\)"):
        load(tmp_path, rows(20), data={"where": {"food": "greek"}})


VALUES = st.sampled_from(["the mill", "", " ", None, 3, ["a"], {"b": 1}])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=20), st.booleans())
def test_every_row_is_an_example_or_a_bad_row(tmp_path_factory, content, plain):
    path = tmp_path_factory.getbasetemp() / "every.jsonl"
    made = [dict(zip(("source", "target", "references"), row, strict=True)) for row in content]
    lines = [json.dumps(row) for row in made] + ["no JSON", "[1]"]
    path.write_text("\n".join(lines), encoding="utf-8")
    kind = "language-modelling" if plain else "data-to-text"
    spec = GenerationSpec() if plain else GenerationSpec(references="references")
    data, bad = DataSpec(train="every.jsonl", text="source"), BadRows()
    found = list(examples(data, spec, kind, open_parts(data, spec, kind, path.parent)["train"], bad))
    assert len(found) + bad.counts.total() == len(content) + 2
    places = [e.place for e in found] + [said.split(": ")[0] for said in bad.said]
    assert sorted(places) == sorted(f"{path}, line {i}" for i in range(1, len(lines) + 1))
    for e in found:
        assert isinstance(e.target, str)
        assert plain or (e.prompt.strip() and e.target.strip() and all(text.strip() for text in e.references))


def test_a_data_set_that_datasets_saved_is_read_by_its_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_list(rows(count, seed)) for seed, (name, count) in enumerate(SPLITS.items())}
    DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    spec = GenerationSpec(references="references")
    found = load_generation_data(DataSpec(name="saved"), spec, "data-to-text", tmp_path, 0)
    assert found.sizes == SPLITS
    assert found.test[0].references == tuple(rows(8, 2)[0]["references"])
    assert found.test[0].place.endswith("saved, split 'test', row 1")


SPLITS = {"train": 20, "validation": 6, "test": 8}


def test_texts_of_the_same_prompt_in_the_test_part_are_references(tmp_path):
    content = [{"source": f"name : {name}", "target": f"{name} {i}"} for i in range(3) for name in ("mill", "eagle")]
    for name in SPLITS:
        write_jsonl(tmp_path / f"{name}.jsonl", content)
    files = {name: f"{name}.jsonl" for name in SPLITS}
    found = load_generation_data(DataSpec(**files), GenerationSpec(), "data-to-text", tmp_path, 0)
    assert found.sizes == {"train": 6, "validation": 6, "test": 2}
    assert [e.references for e in found.test] == [("mill 0", "mill 1", "mill 2"), ("eagle 0", "eagle 1", "eagle 2")]
    assert found.notes == ["counted 4 further text(s) for the same prompts as references: test"]
