"""The whole chain on a tiny model: what comes out, and that it is what the figures say."""

import json

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

import dsee
from conftest import tiny_tokenizer
from dsee.report import rows, write_report
from dsee.runtime import OnnxModel
from dsee.training import load_recipe
from dsee.training.setting import Setting

STAGES = ["tune", "prune", "recover", "merge", "export", "measure"]


def test_all_stages_run_in_order_and_their_bars_fill(finished):
    assert finished.progress.ran == STAGES
    for name in STAGES:
        done, total = finished.progress.steps[name]
        assert done == total, name


def test_the_tiny_task_is_learned_and_kept(finished):
    stages = finished.result.stages
    assert stages["tune"]["test"]["accuracy"] >= 90
    assert stages["merge"]["test"]["accuracy"] >= 90


def test_merging_changes_no_answer(finished):
    assert finished.result.stages["merge"]["test"] == finished.result.stages["recover"]["test"]


def test_heads_and_neurons_are_gone_from_the_weights(finished):
    model = dsee.load(finished.folder / "out" / "model")
    assert isinstance(model, BertForSequenceClassification)
    for layer in model.bert.encoder.layer:
        assert layer.attention.self.query.weight.shape == (24, 32)
        assert layer.intermediate.dense.weight.shape == (24, 32)
    assert finished.result.stages["prune"]["encoder_flops"] < 0.75 * finished.result.stages["tune"]["encoder_flops"]


def test_the_history_tells_the_chain(finished):
    steps = [step["step"] for step in dsee.history(dsee.load(finished.folder / "out" / "model"))]
    assert steps == ["tune", "prune", "recover", "merge"]


def test_the_reported_accuracy_is_that_of_the_saved_files(finished):
    setting = Setting(load_recipe(finished.recipe), finished.folder, finished.folder / "out")
    tokenizer, test = tiny_tokenizer(), setting.data.test
    encoded = tokenizer(list(test["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = dsee.load(finished.folder / "out" / "model")(**encoded).logits.argmax(-1).numpy()
    accuracy = 100 * float((found == np.array(test["label"])).mean())
    assert finished.result.stages["merge"]["test"]["accuracy"] == pytest.approx(accuracy)
    for precision in ("fp32", "int8"):
        answers = OnnxModel(finished.folder / "out" / f"onnx-{precision}").logits(list(test["text"])).argmax(-1)
        accuracy = 100 * float((answers == np.array(test["label"])).mean())
        assert finished.result.stages["export"][precision]["test"]["accuracy"] == pytest.approx(accuracy)


def test_the_best_epoch_wins(finished):
    log = finished.result.stages["tune"]["validation"]
    model = dsee.load(finished.folder / "out" / "stages" / "tuned")
    setting = Setting(load_recipe(finished.recipe), finished.folder, finished.folder / "out")
    from dsee.training.fit import evaluate

    found = evaluate(model, setting.parts["validation"], setting.collate)
    assert found["accuracy"] == max(entry["accuracy"] for entry in log)


def test_only_update_and_head_were_trained(finished):
    tuned = dsee.load(finished.folder / "out" / "stages" / "tuned")
    original = BertForSequenceClassification.from_pretrained(load_recipe(finished.recipe).model, num_labels=2)
    for name, weight in original.bert.state_dict().items():
        stored = dict(tuned.get_base_model().bert.state_dict())
        key = (
            name
            if name in stored
            else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        assert torch.equal(stored[key], weight), name
    per_matrix = 4 * (32 + 32) + 8
    assert finished.result.stages["tune"]["trainable"] == 6 * per_matrix + 3 * (4 * (32 + 40) + 8) + 2 * 32 + 2


def test_the_report(finished):
    recipe = load_recipe(finished.recipe)
    table = write_report(finished.result, recipe, {"train": 1, "validation": 2, "test": 3})
    assert [row.name for row in table] == ["dense", "pruned", "recovered", "ONNX fp32", "ONNX int8"]
    assert table == rows(finished.result)
    assert table[2].encoder_flops < table[0].encoder_flops
    assert table[4].megabytes < table[3].megabytes
    page = (finished.folder / "out" / "report.md").read_text(encoding="utf-8")
    assert all(row.name in page for row in table)
    assert (
        json.loads((finished.folder / "out" / "report.json").read_text(encoding="utf-8"))["rows"][0]["name"] == "dense"
    )
    assert (finished.folder / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
