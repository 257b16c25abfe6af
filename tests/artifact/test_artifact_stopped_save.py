"""A save that cannot be finished leaves what was there, whole, and nothing beside it."""

import errno
import os
from pathlib import Path

import pytest
import torch
from artifact_tools import beside, bytes_of, unevenly_cut

import dsee
from conftest import logits, tiny_bert
from dsee import ArtifactError


@pytest.fixture
def old(tmp_path):
    return dsee.save(unevenly_cut(tiny_bert(0)), tmp_path / "out")


def _fails(error):
    def raising(*_args, **_kwargs):
        raise error

    return raising


def _check_old(folder, before):
    assert bytes_of(folder) == before
    assert torch.equal(logits(dsee.load(folder)), logits(unevenly_cut(tiny_bert(0))))
    assert beside(folder) == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("moment", ["dsee.artifact.save.card", "dsee.artifact.save.write_manifest"])
def test_an_exception_in_the_middle_leaves_the_old_artifact(old, monkeypatch, moment, error):
    before = bytes_of(old)
    with monkeypatch.context() as patch:
        patch.setattr(moment, _fails(error))
        with pytest.raises(type(error)):
            dsee.save(tiny_bert(1), old)
    _check_old(old, before)


def test_an_exception_in_the_middle_leaves_nothing_where_nothing_was(tmp_path, monkeypatch):
    monkeypatch.setattr("dsee.artifact.save.write_manifest", _fails(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        dsee.save(tiny_bert(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_tokenizer_leaves_the_old_artifact(old):
    class Broken:
        save_pretrained = _fails(RuntimeError("stop"))

    before = bytes_of(old)
    with pytest.raises(RuntimeError, match="stop"):
        dsee.save(tiny_bert(1), old, tokenizer=Broken())
    _check_old(old, before)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("error", [FULL, QUOTA], ids=["full", "quota"])
@pytest.mark.parametrize(
    "call", [(os, "fsync"), (Path, "write_text"), (Path, "mkdir")], ids=["fsync", "write", "mkdir"]
)
def test_a_full_disk_is_said_to_be_full_and_leaves_the_old_artifact(old, monkeypatch, call, error):
    before = bytes_of(old)
    with monkeypatch.context() as patch:
        patch.setattr(*call, _fails(error))
        with pytest.raises(ArtifactError, match=r"out could not be written: no space is left.*Nothing was changed"):
            dsee.save(tiny_bert(1), old)
    _check_old(old, before)


def test_another_failure_names_its_reason(old, monkeypatch):
    before = bytes_of(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fails(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(ArtifactError, match=r"Input/output error.*Nothing was changed"):
            dsee.save(tiny_bert(1), old)
    _check_old(old, before)


def test_bytes_that_change_on_their_way_to_the_disk_are_noticed(old, monkeypatch):
    before = bytes_of(old)
    honest = os.fsync

    def corrupting(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == "model.safetensors":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        honest(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", corrupting)
        with pytest.raises(ArtifactError, match=r"model\.safetensors"):
            dsee.save(tiny_bert(1), old)
    _check_old(old, before)


@pytest.mark.parametrize("number", [1, 2])
def test_a_failing_rename_leaves_the_old_artifact(old, monkeypatch, number):
    before, rename, calls = bytes_of(old), Path.rename, []

    def failing(path, target):
        calls.append(path)
        if len(calls) == number:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(ArtifactError, match="Permission denied"):
            dsee.save(tiny_bert(1), old)
    assert len(calls) >= number
    _check_old(old, before)


def test_the_next_save_succeeds(old, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fails(FULL))
        with pytest.raises(ArtifactError):
            dsee.save(tiny_bert(1), old)
    assert torch.equal(logits(dsee.load(dsee.save(tiny_bert(1), old))), logits(tiny_bert(1)))
    assert beside(old) == []
