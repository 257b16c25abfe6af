"""What an exported folder holds besides the graph."""

from pathlib import Path

import pytest
import torch
from onnx_tools import LONGEST, NAMES, described, exported, tokenizer, trace_from

import dsee
from dsee import InputError
from dsee.artifact import read_manifest, verify
from dsee.runtime import OnnxModel


def test_labels_are_stored_in_the_order_of_the_logits():
    export = exported("bert")
    assert described(export.folder)["labels"] == OnnxModel(export.folder).labels == list(NAMES.values())


def test_the_shorter_limit_of_model_and_tokenizer_is_stored():
    folder = exported("bert").folder
    assert described(folder)["max_length"] == read_manifest(folder).facts["max_length"] == LONGEST


def test_a_longer_text_is_truncated():
    model = OnnxModel(exported("bert").folder)
    encoded = model.encode(["good " * 200])
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape == (1, LONGEST)
    assert model.logits(["good " * 200]).shape == (1, 3)


def test_a_pair_is_truncated_as_a_whole():
    encoded = OnnxModel(exported("bert").folder).encode(["good " * 50], ["bad " * 50])
    assert encoded["input_ids"].shape == (1, LONGEST)


def test_a_shorter_text_is_padded_and_masked():
    encoded = OnnxModel(exported("bert").folder).encode(["good film", "a quietly moving film"])
    assert encoded["input_ids"].tolist() == [[16, 8, 3, 3], [5, 6, 7, 8]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_texts_give_the_logits_of_the_model():
    export = exported("bert")
    model = OnnxModel(export.folder)
    texts = ["good film", "two hours i will never get back"]
    with torch.no_grad():
        encoded = {name: torch.from_numpy(array) for name, array in model.encode(texts).items()}
        expected = export.model(**encoded).logits
    tolerance = 3 * 40 * torch.finfo(torch.float32).eps * expected.abs().max().item()
    assert abs(model.logits(texts) - expected.numpy()).max() <= tolerance


def test_a_pair_gives_the_logits_of_the_model_that_was_tuned_on_pairs():
    # tuning feeds all that the tokenizer says, token_type_ids included; they change BERT's logits
    export = exported("bert")
    texts, pairs = ["good film", "two hours i will never get back"], ["a moving film", "bad"]
    encoded = tokenizer()(texts, pairs, padding=True, return_tensors="pt")
    assert encoded["token_type_ids"].any()
    with torch.no_grad():
        expected = export.model(**encoded).logits
        unmarked = export.model(**{name: encoded[name] for name in ("input_ids", "attention_mask")}).logits
    tolerance = 3 * 40 * torch.finfo(torch.float32).eps * expected.abs().max().item()
    assert abs(expected - unmarked).max() > 100 * tolerance
    assert abs(OnnxModel(export.folder).logits(texts, pairs) - expected.numpy()).max() <= tolerance


def test_the_folder_is_whole_and_tells_its_history():
    export = exported("bert")
    manifest = verify(export.folder)
    assert manifest.kind == "onnx"
    assert manifest.structure == export.model.config.dsee_structure
    assert manifest.history == dsee.history(export.model)


def test_the_graph_holds_no_path_of_this_machine():
    # the exporter notes a stack trace at every node: paths of whoever exported, and most of a small file
    data = (exported("bert").folder / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in data
    assert str(Path(dsee.__file__).parent).encode() not in data


def test_an_own_max_length_is_kept(tmp_path, monkeypatch):
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    assert described(dsee.export_onnx(export.model, tmp_path / "out", max_length=7))["max_length"] == 7


def test_without_a_tokenizer_the_models_positions_are_the_limit(tmp_path, monkeypatch):
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    out = dsee.export_onnx(export.model, tmp_path / "out")
    assert described(out)["max_length"] == 80
    with pytest.raises(InputError, match="exported without a tokenizer"):
        OnnxModel(out).encode(["good film"])


def test_roberta_keeps_two_positions_to_itself(tmp_path, monkeypatch):
    export = exported("roberta")
    trace_from(monkeypatch, export.folder)
    assert described(dsee.export_onnx(export.model, tmp_path / "out"))["max_length"] == 80


@pytest.mark.parametrize("length", [0, -1, 81, 10**6])
def test_a_max_length_that_the_model_cannot_take_is_refused(tmp_path, monkeypatch, length):
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    with pytest.raises(InputError, match="max_length"):
        dsee.export_onnx(export.model, tmp_path / "out", max_length=length)


def test_no_texts_give_no_logits():
    assert OnnxModel(exported("bert").folder).logits([]).shape == (0, 3)


def test_texts_and_pairs_of_different_number_are_refused():
    with pytest.raises(InputError, match="pairs"):
        OnnxModel(exported("bert").folder).logits(["good", "bad"], ["film"])


def test_an_export_beside_the_model_survives_a_new_save_of_the_model(tmp_path, monkeypatch):
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    out = dsee.save(export.model, tmp_path / "out")
    dsee.export_onnx(export.model, out / "onnx")
    dsee.save(export.model, out)
    assert verify(out / "onnx").kind == "onnx"


def test_a_second_export_replaces_the_first(tmp_path, monkeypatch):
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    dsee.export_onnx(export.model, tmp_path / "out", max_length=7)
    dsee.export_onnx(export.model, tmp_path / "out", max_length=9)
    assert described(tmp_path / "out")["max_length"] == 9
