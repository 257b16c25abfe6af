"""Folders named in every way that people name folders."""

import os
import shutil

import pytest
import torch
from artifact_tools import unevenly_cut

import dsee
from conftest import logits, tiny_bert
from dsee import DseeError


def _model(seed=0):
    return unevenly_cut(tiny_bert(seed))


@pytest.mark.parametrize("name", ["out", "./out", "out/", "a/../out", "with space/ünïcode 漢字", ".hidden"])
def test_relative_names_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    dsee.save(_model(0), name)
    dsee.save(_model(1), name)
    assert torch.equal(logits(dsee.load(name)), logits(_model(1)))


def test_the_current_folder_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(dsee.save(_model(), tmp_path / "out"))
    assert torch.equal(logits(dsee.load(".")), logits(_model()))


def test_the_parent_folder_can_be_loaded(tmp_path, monkeypatch):
    out = dsee.save(_model(), tmp_path / "out")
    (out / "onnx").mkdir()
    monkeypatch.chdir(out / "onnx")
    assert torch.equal(logits(dsee.load("..")), logits(_model()))


def test_the_current_folder_is_not_replaced_under_ones_feet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DseeError, match="current folder"):
        dsee.save(_model(), ".")


def test_saving_through_a_link_writes_where_it_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for seed in (0, 1, 2):
        dsee.save(_model(seed), tmp_path / "out")
        assert torch.equal(logits(dsee.load(tmp_path / "out")), logits(_model(seed)))
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_a_folder_of_links_loads(tmp_path):
    # as the Hub's cache keeps a snapshot: links into a folder of blobs beside it
    out = dsee.save(_model(), tmp_path / "saved")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(out, blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert torch.equal(logits(dsee.load(snapshot)), logits(_model()))
