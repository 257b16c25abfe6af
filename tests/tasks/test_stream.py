"""A training part that is read anew in every epoch."""

import itertools

import pytest

from conftest import sentences, tiny_tokenizer, write_csv
from dsee.errors import InputError
from dsee.tasks import DataSpec, load_text_data
from dsee.tasks.stream import Streamed

ROWS = [(f"{text} {'good ' * (i % 9)}", label) for i, (text, label) in enumerate(sentences(60))]


def stream(tmp_path, rows=ROWS, buffer=7, max_length=64, **more):
    for name, part in (("train", rows), ("validation", ROWS[:8]), ("test", ROWS[:8])):
        write_csv(tmp_path / f"{name}.csv", part)
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    spec = DataSpec(**files, labels=["negative", "positive"], streaming=True, shuffle_buffer=buffer, **more)
    data = load_text_data(spec, tmp_path, 0)
    assert data.sizes == {"validation": 8, "test": 8}
    return Streamed(data.train, tiny_tokenizer(), max_length, seed=3)


def key(feature):
    return (*feature["input_ids"], feature["labels"])


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(tmp_path):
    found = stream(tmp_path)
    epochs = []
    for epoch in (0, 1):
        found.set_epoch(epoch)
        epochs.append([key(feature) for feature in found])
    expected = [key(feature) for feature in found.rows()]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(expected)
    assert epochs[0] != epochs[1] != expected
    found.set_epoch(0)
    assert [key(feature) for feature in found] == epochs[0]


def test_only_the_buffer_is_kept(tmp_path):
    read = 0
    found = stream(tmp_path, rows=ROWS * 20, buffer=5)
    source = found.stream.source.rows

    def counted():
        nonlocal read
        for row in source():
            read += 1
            yield row

    object.__setattr__(found.stream.source, "rows", counted)
    list(itertools.islice(found, 10))
    # a chunk for the tokenizer at a time
    assert 15 <= read <= 256 + 1


def test_the_head_is_the_beginning_of_the_file(tmp_path):
    found = stream(tmp_path)
    assert [key(f) for f in found.head(5).features] == [key(f) for f in itertools.islice(found.rows(), 5)]


def test_bad_rows_stop_the_stream_or_are_told(tmp_path):
    bad = [*ROWS[:30], ("", "positive"), ("x", "neither"), *ROWS[30:]]
    with pytest.raises(InputError, match=r"train.csv, line 32: column 'text' is empty"):
        list(stream(tmp_path, rows=bad))
    found = stream(tmp_path, rows=bad, max_bad_rows=2)
    for _ in range(2):
        assert len(list(found)) == 60
    # a beginning of the file does not make what is known of the rest forgotten
    found.head(3)
    assert found.notes[0] == "left out 2 bad row(s): 1 x missing text, 1 x unknown label"


def test_bytes_that_are_no_text_are_a_bad_row_of_a_stream(tmp_path):
    found = stream(tmp_path, max_bad_rows=1)
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes() + "caf\u00e9,positive\n".encode("latin1"))
    assert len(list(found)) == 60
    assert r"line 62: not UTF-8 (byte 0xe9) in column 'text'." in found.notes[1]


@pytest.mark.parametrize("policy", ["truncate", "skip", "error"])
def test_long_texts_of_a_stream(tmp_path, policy):
    found = stream(tmp_path, max_length=10, too_long=policy, max_bad_rows=60)
    lengths = [len(feature["input_ids"]) for feature in found]
    assert max(lengths) <= 10
    if policy == "truncate":
        assert len(lengths) == 60
        assert found.truncated > 0
    else:
        left = found.skipped if policy == "skip" else found.bad.counts["too long"]
        assert 0 < left == 60 - len(lengths)
    assert found.notes


def test_labels_of_a_stream_have_to_be_listed(tmp_path):
    for name in ("train", "validation", "test"):
        write_csv(tmp_path / f"{name}.csv", ROWS[:8])
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    with pytest.raises(InputError, match="list them under labels"):
        load_text_data(DataSpec(**files, streaming=True), tmp_path, 0)
