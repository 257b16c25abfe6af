"""What cannot be exported is refused before or after the fact, and leaves nothing behind."""

import sys

import onnx
import pytest
import torch
from onnx_tools import exported, modes, trace_from, unevenly_cut
from transformers import BertConfig, BertModel

import dsee
from conftest import POSITIONS, SIZES, VOCABULARY, adapted, tiny_bert
from dsee import ExportError, InputError, MissingExtraError, OrderError
from dsee.artifact import verify
from dsee.artifact.manifest import Manifest, write_manifest
from dsee.runtime import OnnxModel
from dsee.runtime.onnx_parity import check_parity


@pytest.fixture
def traced(monkeypatch):
    """A model, and the graph that the next exports get in place of a fresh one."""
    export = exported("bert")
    trace_from(monkeypatch, export.folder)
    return export


def test_an_unmerged_update_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(OrderError, match=r"dsee\.merge\(model\)"):
        dsee.export_onnx(adapted(tiny_bert()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantize", ["int4", "INT8", "", True, 8], ids=repr)
def test_an_unknown_quantisation_is_refused_with_the_known_ones(traced, tmp_path, quantize):
    with pytest.raises(InputError, match="Use None for fp32 or 'int8'"):
        dsee.export_onnx(traced.model, tmp_path / "out", quantize=quantize)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_what_to_install(traced, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dsee\[onnx\]'"):
        dsee.export_onnx(traced.model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_running_without_onnxruntime_names_what_to_install(monkeypatch):
    folder = exported("bert").folder
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dsee\[onnx\]'"):
        OnnxModel(folder)


def test_a_slow_tokenizer_is_refused(traced, tmp_path):
    class Slow:
        is_fast, model_max_length = False, 20

    with pytest.raises(InputError, match="Slow is not a fast tokenizer"):
        dsee.export_onnx(traced.model, tmp_path / "out", tokenizer=Slow())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def without_logits(tmp_path_factory):
    """The failing export of a model in train mode whose embeddings are not, made once."""
    root = tmp_path_factory.mktemp("without-logits")
    config = BertConfig(**SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS)
    model = BertModel(config).train()
    model.embeddings.eval()
    before = modes(model)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is for the tests to say
        dsee.export_onnx(model, root / "out")
    return caught.value, before, modes(model), list(root.iterdir())


def test_a_model_without_logits_is_refused_by_name(without_logits):
    error, *_ = without_logits
    assert isinstance(error, InputError), type(error)
    assert "BertModel returns no logits" in str(error)


def test_a_failing_export_leaves_nothing_behind(without_logits):
    assert without_logits[3] == []


def test_a_failing_export_leaves_train_mode_as_it_was(without_logits):
    _, before, after, _ = without_logits
    assert after == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dtype_that_the_export_cannot_keep_is_refused_by_name(tmp_path, dtype):
    with pytest.raises(InputError, match=str(dtype).removeprefix("torch.")):
        dsee.export_onnx(unevenly_cut(tiny_bert()).to(dtype), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_model_is_not_kept(traced, tmp_path):
    with pytest.raises(ExportError, match=r"differ by .* was not kept"):
        dsee.export_onnx(unevenly_cut(tiny_bert(1)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_shape_is_not_kept(traced, tmp_path):
    with pytest.raises(ExportError, match=r"gives shape \(1, 3\) where the model gives \(1, 2\)"):
        dsee.export_onnx(tiny_bert(num_labels=2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_one(traced, tmp_path):
    out = dsee.export_onnx(traced.model, tmp_path / "out", max_length=7)
    with pytest.raises(ExportError):
        dsee.export_onnx(unevenly_cut(tiny_bert(1)), out)
    assert verify(out).facts["max_length"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_int8_that_is_too_far_off_is_not_kept(traced, tmp_path):
    with pytest.raises(ExportError, match=r"a larger tolerance= keeps it"):
        dsee.export_onnx(traced.model, tmp_path / "out", quantize="int8", tolerance=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_quantiser_leaves_nothing_behind(traced, tmp_path, monkeypatch):
    def failing(*_args, **_kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", failing)
    with pytest.raises(RuntimeError, match="no such kernel"):
        dsee.export_onnx(traced.model, tmp_path / "out", quantize="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [0.0, 1e-9, 0.25])
def test_the_tolerance_given_is_the_tolerance_used(traced, tmp_path, monkeypatch, given):
    used = []
    monkeypatch.setattr(
        "dsee.runtime.onnx_export.check_parity", lambda model, path, limit, tolerance: used.append(tolerance) or 0.0
    )
    dsee.export_onnx(traced.model, tmp_path / "out", tolerance=given)
    assert used == [given]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_never_agree(number):
    model = unevenly_cut(tiny_bert())
    with torch.no_grad():
        model.classifier.bias.fill_(number)
    with pytest.raises(ExportError, match="differ"):
        check_parity(model, exported("bert").folder / "model.onnx", 80, 1e-4)


def test_one_bad_logit_is_enough():
    model = unevenly_cut(tiny_bert())
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(ExportError, match="differ"):
        check_parity(model, exported("bert").folder / "model.onnx", 80, 1e-4)


def test_a_folder_of_someone_else_is_left_alone(traced, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("mine")
    with pytest.raises(dsee.ArtifactError, match="left alone"):
        dsee.export_onnx(traced.model, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_text() == "mine"


def test_a_graph_that_ignores_padding_is_noticed(tmp_path):
    # it agrees wherever nothing is padded
    export = exported("bert")
    graph = onnx.load(export.folder / "model.onnx")
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "all_ones"
    sign = onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["all_true"])
    cast = onnx.helper.make_node("Cast", ["all_true"], ["all_ones"], to=onnx.TensorProto.INT64)
    graph.graph.node.insert(0, cast)
    graph.graph.node.insert(0, sign)
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="differ"):
        check_parity(export.model, tmp_path / "model.onnx", 80, 1e-4)


def test_an_export_does_not_take_the_place_of_its_model(traced, tmp_path):
    model = tiny_bert()
    dsee.save(model, tmp_path / "model")
    with pytest.raises(InputError, match="holds an artifact of kind 'model'"):
        dsee.export_onnx(model, tmp_path / "model")
    assert torch.equal(dsee.load(tmp_path / "model").classifier.weight, model.classifier.weight)


def test_a_model_does_not_take_the_place_of_an_export(tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    write_manifest(folder, Manifest(kind="onnx"))
    with pytest.raises(InputError, match="holds an artifact of kind 'onnx'"):
        dsee.save(tiny_bert(), folder)
    assert (folder / "model.onnx").read_bytes() == b"graph"
