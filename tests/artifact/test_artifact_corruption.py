"""Every format of folder, truncated at every section, with any bit flipped, shards missing, or lying on purpose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from artifact_tools import edit_config, edit_manifest, rehash
from hypothesis import given, settings
from hypothesis import strategies as st
from write_golden import GOLDEN, bert

import dsee
from conftest import adapted
from dsee.artifact import read_manifest
from dsee.errors import ArtifactError

GOLD = GOLDEN / dsee.__version__
KINDS = ("compact-cut-split", "update", "split", "adapted")
FLIPS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    place = tmp_path_factory.mktemp("damaged")
    return {kind: shutil.copytree(GOLD / kind, place / kind) for kind in KINDS}


def load(folder):
    return dsee.load(folder, **({"base": bert()} if "update" in folder.name else {}))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_other_tests_damage_is_whole(copies, kind):
    assert load(copies[kind])


def sections(path):
    """Where each part of a file ends: of safetensors the length, the header and every tensor; of others some lines."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        # not the last byte: without its final newline a JSON file still says the same
        return {0, 1, len(data) // 3, len(data) // 2, len(data) - 2}
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    ends = {8 + size + end for name, facts in header.items() if name != "__metadata__" for end in facts["data_offsets"]}
    return {0, 4, 8, 8 + size // 2, 8 + size} | {end for end in ends if end < len(data)} | {len(data) - 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_at_any_section_is_named(copies, kind):
    folder = copies[kind]
    for name in sorted([*read_manifest(folder).files, "dsee.json"]):
        path, whole = folder / name, (folder / name).read_bytes()
        try:
            for length in sorted(sections(path)):
                path.write_bytes(whole[:length])
                with pytest.raises(ArtifactError, match=path.name):
                    load(folder)
            path.unlink()
            with pytest.raises(ArtifactError, match=path.name):
                load(folder)
        finally:
            path.write_bytes(whole)


@FLIPS
@given(kind=st.sampled_from(KINDS), file=st.floats(0, 1, exclude_max=True), place=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_anywhere_is_noticed(copies, kind, file, place):
    folder = copies[kind]
    names = sorted([*read_manifest(folder).files, "dsee.json"])
    path = folder / names[int(file * len(names))]
    whole = path.read_bytes()
    damaged, bit = bytearray(whole), int(place * len(whole) * 8)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=path.name if path.name != "dsee.json" else kind):
            load(folder)
    finally:
        path.write_bytes(whole)


HEADERS = [0, 1, 2**20, 10**8 + 1, 2**40, 2**63, 2**64 - 1]


@pytest.mark.parametrize("claimed", HEADERS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("compact-cut-split", "compact-00001-of-00004.safetensors"),
        ("stock-weights", "masks.safetensors"),
        ("stock-weights", "model.safetensors"),
        ("adapted", "adapter/adapter_model.safetensors"),
        ("gated", "gates.safetensors"),
    ],
)
def test_a_header_length_that_lies_is_refused(tmp_path, kind, name, claimed):
    folder = Path(shutil.copytree(GOLD / kind, tmp_path / "out"))
    assert (folder / name).is_file(), sorted(read_manifest(folder).files)
    (folder / name).write_bytes(claimed.to_bytes(8, "little") + (folder / name).read_bytes()[8:])
    with pytest.raises(ArtifactError, match="out"):
        dsee.load(rehash(folder))


HUGE = [
    ("stock", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("stock", {"vocab_size": 10**12}, "describes a model of"),
    ("stock", {"hidden_size": 2**24, "num_attention_heads": 2}, "describes a model of"),
    ("stock", {"intermediate_size": 2**40}, "describes a model of"),
    ("stock", {"num_labels": 10**9}, "num_labels"),
    ("cut", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("compact-weights", {"vocab_size": 10**12}, "describes a model of"),
    ("compact-weights", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("stock-llama-cut-alike", {"num_hidden_layers": 10**7}, "num_hidden_layers"),
    ("stock-llama-cut-alike", {"intermediate_size": 2**50}, "stock-llama|describes a model of"),
]


@pytest.mark.parametrize(("kind", "change", "message"), HUGE, ids=str)
def test_a_configuration_of_a_huge_model_takes_no_memory_for_it(tmp_path, kind, change, message):
    folder = Path(shutil.copytree(GOLD / kind, tmp_path / kind))
    with pytest.raises(ArtifactError, match=message):
        dsee.load(edit_config(folder, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"r": 10**9},
        {"rank_pattern": {"query": 10**9}},
        {"n_sparse": 10**12},
        {"n_sparse_pattern": {"query": 10**12}},
        {"n_sparse_pattern": {"query": [10**12, 1]}},
    ],
    ids=str,
)
def test_an_update_of_huge_rank_takes_no_memory_for_it(tmp_path, change):
    folder = Path(shutil.copytree(GOLD / "adapted", tmp_path / "out"))
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match="asks for more than"):
        dsee.load(rehash(folder))


@pytest.mark.parametrize("text", ["(b+)+$", "(b|b)*x", ".*.*.*.*.*.*x", "(?:e{1,}){9}"])
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "n_sparse_pattern"])
def test_an_expression_that_would_match_for_ever_is_not_tried(tmp_path, field, text):
    folder = Path(shutil.copytree(GOLD / "adapted", tmp_path / "out"))
    path = folder / "adapter" / "adapter_config.json"
    value = text if field == "target_modules" else {text: 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ArtifactError, match="could take for ever"):
        dsee.load(rehash(folder))


def test_an_expression_of_the_usual_kind_is_saved_and_one_that_would_not_load_is_refused(tmp_path):
    usual = r".*layer\.\d+\.(attention|intermediate).*(query|key|dense)"
    assert dsee.load(dsee.save(adapted(bert(), target_modules=usual, support="random"), tmp_path / "out"))
    slow = adapted(bert(), target_modules=r"(.*\.)+query", support="random")
    with pytest.raises(dsee.InputError, match="could take for ever"):
        dsee.save(slow, tmp_path / "slow")
    assert not (tmp_path / "slow").exists()


@pytest.mark.parametrize("kind", ["compact-cut-split", "update", "split", "adapted"])
def test_a_newer_format_says_what_to_do(tmp_path, kind):
    folder = Path(shutil.copytree(GOLD / kind, tmp_path / kind))
    edit_manifest(folder, lambda content: content.update(format=3, dsee="9.9"))
    with pytest.raises(ArtifactError, match=r"format 3, written by dsee 9\.9.*pip install --upgrade"):
        load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(path.name for path in GOLD.iterdir() if path.is_dir()))
def test_random_damage_with_hashes_that_agree_never_crashes_hangs_or_grabs_memory(kind):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "fuzz_loader.py"), str(GOLD / kind), "0", "60"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=here.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(dsee.__file__).parents[1]), ".", "artifact"])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) <= {"ArtifactError", "loaded"}
    assert found["ArtifactError"] > 10
