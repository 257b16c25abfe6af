"""What someone else put into an artifact's folder is theirs."""

import contextlib
import errno
import os
from pathlib import Path

import pytest
from artifact_tools import beside, bytes_of, unevenly_cut

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError
from dsee.artifact import verify


@pytest.fixture
def artifact(tmp_path):
    return dsee.save(unevenly_cut(tiny_bert()), tmp_path / "out")


def _put(path, text="mine"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_own_files_do_not_disturb_loading(artifact):
    _put(artifact / "notes.txt")
    _put(artifact / "onnx" / "model.onnx")
    assert dsee.load(artifact)


def test_own_files_survive_a_new_save(artifact):
    notes, inside = _put(artifact / "notes.txt"), _put(artifact / "onnx" / "model.onnx")
    (artifact / "empty").mkdir()
    dsee.save(unevenly_cut(tiny_bert(1)), artifact)
    assert notes.read_text() == inside.read_text() == "mine"
    assert (artifact / "empty").is_dir()
    assert beside(artifact) == []


def test_own_links_survive_a_new_save(artifact, tmp_path):
    _put(tmp_path / "elsewhere" / "data.csv")
    (artifact / "data").symlink_to(tmp_path / "elsewhere")
    dsee.save(unevenly_cut(tiny_bert(1)), artifact)
    assert (artifact / "data").is_symlink()
    assert (tmp_path / "elsewhere" / "data.csv").read_text() == "mine"


def test_files_of_the_old_artifact_that_the_new_one_lacks_go(artifact):
    dsee.save(adapted(unevenly_cut(tiny_bert())), artifact)
    assert (artifact / "adapter").is_dir()
    dsee.save(unevenly_cut(tiny_bert()), artifact)
    assert not (artifact / "adapter").exists()


def test_own_files_inside_a_folder_of_the_artifact_survive(tmp_path):
    out = dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "out")
    notes = _put(out / "adapter" / "notes.txt")
    dsee.save(adapted(unevenly_cut(tiny_bert())), out)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("place", ["adapter", "adapter/adapter_config.json"])
def test_an_own_file_in_the_way_of_a_new_one_is_not_written_over(artifact, place):
    before = bytes_of(artifact)
    own = _put(artifact / place)
    with pytest.raises(ArtifactError, match=own.name):
        dsee.save(adapted(unevenly_cut(tiny_bert(1))), artifact)
    assert bytes_of(artifact) == before | {place: bytes_of(artifact)[place]}
    assert own.read_text() == "mine"
    assert beside(artifact) == []
    assert dsee.load(artifact)


def test_an_own_folder_in_the_way_of_a_new_file_is_not_written_over(artifact):
    own = _put(artifact / "tokenizer.json" / "notes.txt")

    class Tokenizer:
        @staticmethod
        def save_pretrained(folder):
            (folder / "tokenizer.json").write_text("{}")

    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        dsee.save(unevenly_cut(tiny_bert(1)), artifact, tokenizer=Tokenizer())
    assert own.read_text() == "mine"
    assert dsee.load(artifact)


def test_an_own_file_with_the_very_bytes_of_the_new_one_is_in_nobodys_way(artifact):
    # tokenizer.save_pretrained("out") after dsee.save, then dsee.save again with the same tokenizer
    _put(artifact / "tokenizer.json", "{}")

    class Tokenizer:
        @staticmethod
        def save_pretrained(folder):
            (folder / "tokenizer.json").write_text("{}")

    dsee.save(unevenly_cut(tiny_bert(1)), artifact, tokenizer=Tokenizer())
    assert "tokenizer.json" in verify(artifact).files


def test_own_files_that_cannot_be_moved_are_not_lost(artifact, monkeypatch):
    notes, rename = _put(artifact / "notes.txt"), Path.rename

    def failing(path, target):
        if path.name == "notes.txt":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, target)

    with monkeypatch.context() as patch, contextlib.suppress(ArtifactError):
        patch.setattr(Path, "rename", failing)
        dsee.save(unevenly_cut(tiny_bert(1)), artifact)
    assert dsee.load(artifact)
    assert notes.read_text() == "mine"


def test_a_damaged_artifact_is_not_written_over(artifact):
    (artifact / "dsee.json").write_text("{")
    with pytest.raises(ArtifactError, match="left alone"):
        dsee.save(tiny_bert(), artifact)
    assert (artifact / "model.safetensors").is_file()


def test_a_newer_artifact_is_not_written_over(artifact):
    text = (artifact / "dsee.json").read_text()
    (artifact / "dsee.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ArtifactError, match="left alone"):
        dsee.save(tiny_bert(), artifact)
    assert (artifact / "model.safetensors").is_file()
