"""A training part of a task of writing that is read anew in every epoch."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.errors import InputError
from dsee.tasks.generation import EncodedText, GenerationSpec, StreamedText, load_generation_data
from dsee.tasks.generation.pack import IGNORED
from dsee.tasks.spec import DataSpec
from writing_tools import GOOD_CHAT, rows, tokenizer, write_jsonl

WORDS = tokenizer()
FILES = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}


def both(folder, content, kind="data-to-text", words=WORDS, length=64, buffer=7, data=None, **spec):
    """The same rows as a stream and as a part."""
    for name, file in FILES.items():
        write_jsonl(folder / file, content if name == "train" else rows(8))
    made, written = (data or {}), GenerationSpec(**spec)
    loaded = load_generation_data(
        DataSpec(**FILES, streaming=True, shuffle_buffer=buffer, **made), written, kind, folder, 0
    )
    assert "train" not in loaded.sizes
    kept = load_generation_data(DataSpec(**FILES, **made), written, kind, folder, 0)
    whole = EncodedText(
        kept.train, words, length, written, kind, too_long=made.get("too_long", "truncate"), bad=kept.bad
    )
    return StreamedText(loaded.train, words, length, seed=3), whole


def key(feature):
    return json.dumps(feature, sort_keys=True)


def keys(features):
    return [key(feature) for feature in features]


@pytest.mark.parametrize("kind", ["data-to-text", "instruction"])
def test_a_stream_is_the_part_in_an_order_of_each_epoch(tmp_path, kind):
    words = tokenizer(GOOD_CHAT) if kind == "instruction" else WORDS
    found, whole = both(tmp_path, rows(60), kind, words, prompt="source", response="target")
    assert keys(found.rows()) == keys(whole.features)
    epochs = []
    for epoch in (0, 1):
        found.set_epoch(epoch)
        epochs.append(keys(found))
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(keys(whole.features))
    assert epochs[0] != epochs[1]
    found.set_epoch(0)
    assert keys(found) == epochs[0]
    assert keys(found.head(5).features) == keys(whole.features[:5])


def test_only_the_buffer_is_kept(tmp_path):
    found, _ = both(tmp_path, rows(1200), buffer=5)
    read, source = 0, found.texts.source.rows

    def counted():
        nonlocal read
        for row in source():
            read += 1
            yield row

    object.__setattr__(found.texts.source, "rows", counted)
    list(itertools.islice(found, 10))
    assert 15 <= read <= 256 + 1


def test_a_packed_stream_loses_nothing(tmp_path):
    found, whole = both(tmp_path, rows(300), packed=True)
    packed = list(found.rows())
    assert len(packed) < 300
    assert all(len(row["input_ids"]) <= 64 for row in packed)
    flat = sorted(i for row in packed for i in row["input_ids"])
    assert flat == sorted(i for row in whole.features for i in row["input_ids"])
    assert sum(row["position_ids"].count(0) for row in packed) == 300


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab \n", max_size=12), min_size=1, max_size=40), st.integers(2, 9))
def test_plain_text_is_cut_where_the_part_is(tmp_path_factory, lines, length):
    folder = tmp_path_factory.mktemp("book")
    text = "x\n" + "\n".join(lines)
    for name in FILES:
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    files = {name: f"{name}.txt" for name in FILES}
    kind, spec = "language-modelling", GenerationSpec()
    stream = load_generation_data(DataSpec(**files, streaming=True), spec, kind, folder, 0).train
    kept = load_generation_data(DataSpec(**files), spec, kind, folder, 0).train
    found = StreamedText(stream, WORDS, length, seed=0)
    assert list(found.rows()) == EncodedText(kept, WORDS, length, spec, kind).features


def test_paragraphs_end_in_a_stream_as_in_a_part(tmp_path):
    content = [{"text": row["target"]} for row in rows(600)]
    for name, file in FILES.items():
        write_jsonl(tmp_path / file, content if name == "train" else content[:8])
    kind, spec = "language-modelling", GenerationSpec()
    stream = load_generation_data(DataSpec(**FILES, streaming=True), spec, kind, tmp_path, 0).train
    kept = load_generation_data(DataSpec(**FILES), spec, kind, tmp_path, 0).train
    assert list(StreamedText(stream, WORDS, 16, seed=0).rows()) == EncodedText(kept, WORDS, 16, spec, kind).features


BAD = [{"source": "a", "target": " "}, {"source": 3, "target": "b"}]


def test_bad_rows_stop_the_stream_or_are_told(tmp_path):
    content = rows(60)[:30] + BAD + rows(60)[30:]
    loaded = rows(8)
    for name, file in FILES.items():
        write_jsonl(tmp_path / file, content if name == "train" else loaded)
    for limit in (1, 2):
        spec = DataSpec(**FILES, streaming=True, max_bad_rows=limit)
        data = load_generation_data(spec, GenerationSpec(), "data-to-text", tmp_path, 0)
        found = StreamedText(data.train, WORDS, 64, seed=0)
        if limit == 1:
            with pytest.raises(InputError, match=r"(?s)train.jsonl, line 31: column 'target' is empty.*line 32"):
                list(found)
            continue
        for _ in range(2):
            assert len(list(found)) == 60
        assert found.notes == [
            "left out 2 bad row(s): 1 x missing text, 1 x wrong type",
            f"  {tmp_path}/train.jsonl, line 31: column 'target' is empty.",
            f"  {tmp_path}/train.jsonl, line 32: column 'source' holds 3, which is not text.",
        ]


@pytest.mark.parametrize("policy", ["truncate", "skip", "error"])
def test_long_texts_of_a_stream_and_of_a_part(tmp_path, policy):
    content = [row | {"target": row["target"] + " and more" * (i % 5)} for i, row in enumerate(rows(60))]
    found, whole = both(tmp_path, content, length=40, data={"too_long": policy, "max_bad_rows": 60})
    features = list(found.rows())
    assert keys(features) == keys(whole.features)
    assert max(len(row["input_ids"]) for row in features) <= 40
    if policy == "truncate":
        assert len(features) == 60
        assert found.truncated == whole.shortened > 0
    elif policy == "skip":
        assert 0 < found.skipped == 60 - len(features) == len(whole.skipped)
        assert "tokens" in whole.skipped[0]
        assert len(whole.examples) == len(whole.prompts) == len(features)
    else:
        assert 0 < found.bad.counts["too long"] == 60 - len(features)
    assert found.notes


def test_a_prompt_that_leaves_no_room_is_a_bad_row_whatever_is_wanted(tmp_path):
    content = [*rows(20), {"source": "name : " + "mill " * 90, "target": "a"}]
    found, _ = both(tmp_path, content, data={"max_bad_rows": 1})
    assert len(list(found)) == 20
    assert "train.jsonl, line 21: the prompt has" in found.notes[1]
    found, _ = both(tmp_path, content, data={"too_long": "skip"})
    assert (len(list(found)), found.skipped) == (20, 1)


def test_the_loss_is_on_what_is_written_alone(tmp_path):
    found, _ = both(tmp_path, rows(10))
    for row in found:
        learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        assert WORDS.decode(learned).startswith(" the ")
