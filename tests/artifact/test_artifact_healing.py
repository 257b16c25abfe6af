"""A process that died between the two renames of a replacement is made good by the next load or save."""

import shutil

import torch
from artifact_tools import beside, bytes_of, unevenly_cut

import dsee
from conftest import logits, tiny_bert


def _saved(folder, seed=0):
    return dsee.save(unevenly_cut(tiny_bert(seed)), folder)


def test_load_brings_back_what_was_moved_aside(tmp_path):
    out = _saved(tmp_path / "out")
    before = bytes_of(out)
    out.rename(tmp_path / ".out.replaced")
    assert torch.equal(logits(dsee.load(out)), logits(unevenly_cut(tiny_bert())))
    assert bytes_of(out) == before
    assert beside(out) == []


def test_save_makes_good_and_replaces(tmp_path):
    out = _saved(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    out.rename(tmp_path / ".out.replaced")
    _saved(out, seed=1)
    assert torch.equal(logits(dsee.load(out)), logits(unevenly_cut(tiny_bert(1))))
    assert (out / "notes.txt").read_text() == "mine"
    assert beside(out) == []


def test_the_new_artifact_wins_when_both_are_there(tmp_path):
    out = _saved(tmp_path / "out", seed=1)
    old = _saved(tmp_path / "old", seed=0)
    old.rename(tmp_path / ".out.replaced")
    assert torch.equal(logits(dsee.load(out)), logits(unevenly_cut(tiny_bert(1))))
    assert beside(out) == []


def test_own_files_that_had_not_been_moved_over_yet_are_not_lost(tmp_path):
    # the process died after the second rename, before the old folder's foreign entries followed
    out, old = _saved(tmp_path / "out", seed=1), _saved(tmp_path / "old", seed=0)
    (old / "notes.txt").write_text("mine")
    (old / "onnx").mkdir()
    (old / "onnx" / "model.onnx").write_text("mine too")
    old.rename(tmp_path / ".out.replaced")
    assert torch.equal(logits(dsee.load(out)), logits(unevenly_cut(tiny_bert(1))))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "onnx" / "model.onnx").read_text() == "mine too"


def test_a_half_written_folder_of_a_dead_process_is_cleared_away(tmp_path):
    dead = tmp_path / ".out.writing"
    dead.mkdir()
    (dead / "config.json").write_text("{")
    out = _saved(tmp_path / "out")
    assert beside(out) == []
    assert sorted(bytes_of(out)) == ["README.md", "config.json", "dsee.json", "model.safetensors"]


def test_a_half_written_folder_does_not_disturb_loading(tmp_path):
    out = _saved(tmp_path / "out")
    shutil.copytree(out, tmp_path / ".out.writing")
    (tmp_path / ".out.writing" / "model.safetensors").write_bytes(b"half")
    assert torch.equal(logits(dsee.load(out)), logits(unevenly_cut(tiny_bert())))
