"""A file cut short, wherever it is cut, is named and refused."""

import shutil

import pytest
from artifact_tools import unevenly_cut

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError

FILES = [
    "README.md",
    "config.json",
    "dsee.json",
    "model.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
]
OFFSETS = 40


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path_factory.mktemp("truncated") / "out")


def _lengths(size):
    # not the last byte: without its final newline a JSON file still says the same
    return sorted({size * i // OFFSETS for i in range(OFFSETS)} | {1, size - 2})


def test_these_are_all_the_files(artifact):
    assert sorted(p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_at_any_point_is_named(artifact, name):
    path = artifact / name
    whole = path.read_bytes()
    try:
        for length in _lengths(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ArtifactError, match=path.name):
                dsee.load(artifact)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_named(artifact, name):
    path = artifact / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b"x")
        with pytest.raises(ArtifactError, match=path.name):
            dsee.load(artifact)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(artifact, name, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(artifact, copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=name.rpartition("/")[2]):
        dsee.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(artifact, name, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(artifact, copy)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(ArtifactError, match=name.rpartition("/")[2]):
        dsee.load(copy)


def test_the_whole_artifact_loads(artifact):
    # the other tests of this file mean nothing if this one fails
    assert dsee.load(artifact)
