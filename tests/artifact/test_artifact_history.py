"""The steps a model has been through travel with it."""

import json

import torch
from artifact_tools import unevenly_cut

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.artifact import read_manifest
from dsee.steps import record


def _chain(base):
    model = adapted(base)
    record(model, "tune", steps=3, rate=1e-3)
    dsee.prune(
        model, dsee.Heads(1, score="taylor"), dsee.Neurons(0.4, scope="global"), calibration=[batch(labels=True)]
    )
    return model


def test_history_is_stored_and_comes_back(tmp_path):
    merged = dsee.merge(_chain(tiny_bert()))
    out = dsee.save(merged, tmp_path / "out")
    assert [step["step"] for step in read_manifest(out).history] == ["tune", "prune", "merge"]
    assert dsee.history(dsee.load(out)) == dsee.history(merged)


def test_history_of_an_unmerged_model_comes_back(tmp_path):
    model = _chain(tiny_bert())
    assert dsee.history(dsee.load(dsee.save(model, tmp_path / "out"))) == dsee.history(model)


def test_steps_after_loading_follow_those_before(tmp_path):
    loaded = dsee.load(dsee.save(_chain(tiny_bert()), tmp_path / "out"))
    merged = dsee.merge(loaded)
    again = dsee.load(dsee.save(merged, tmp_path / "again"))
    assert [step["step"] for step in dsee.history(again)] == ["tune", "prune", "merge"]


def test_history_survives_a_second_adapter(tmp_path):
    model = _chain(tiny_bert())
    torch.manual_seed(2)
    model.add_adapter("second", dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=5, init_weights=False))
    out = dsee.save(model, tmp_path / "out")
    assert dsee.history(dsee.load(out)) == dsee.history(model)


def test_a_model_without_steps_has_an_empty_history(tmp_path):
    out = dsee.save(unevenly_cut(tiny_bert()), tmp_path / "out")
    assert json.loads((out / "dsee.json").read_text())["history"] == []
    assert dsee.history(dsee.load(out)) == []
