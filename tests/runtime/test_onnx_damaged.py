"""A damaged export is refused, and the error names the file."""

import json

import pytest
from onnx_tools import copied, exported, rehash

import dsee
from dsee import ArtifactError, InputError
from dsee.runtime import OnnxModel

FILES = ["model.onnx", "tokenizer.json", "labels.json", "README.md", "dsee.json"]


@pytest.fixture
def folder(tmp_path):
    return copied(exported("bert"), tmp_path / "out")


def test_the_copy_is_whole(folder):
    assert OnnxModel(folder).labels


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=name):
            OnnxModel(folder)


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_flipped_bit_is_named(folder, name):
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), len(whole) // 7 + 1):
        data = bytearray(whole)
        data[place] ^= 0x10
        (folder / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            OnnxModel(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        OnnxModel(folder)


@pytest.mark.parametrize("data", [b"", b"noise", b"\x08\x0a" * 50], ids=["empty", "noise", "protobuf"])
def test_a_graph_that_is_none_is_refused_though_its_hash_agrees(folder, data):
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        OnnxModel(rehash(folder))


@pytest.mark.parametrize("name", ["model.onnx", "labels.json"])
def test_a_necessary_file_that_the_manifest_does_not_list_is_missed(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        OnnxModel(rehash(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"labels": ["a"]}', "[" * 200_000], ids=range(6))
def test_labels_that_are_none_are_refused_though_their_hash_agrees(folder, text):
    (folder / "labels.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"labels\.json"):
        OnnxModel(rehash(folder))


@pytest.mark.parametrize("text", ["", "{}", "[" * 200_000], ids=["empty", "object", "deep"])
def test_a_tokenizer_that_is_none_is_refused_though_its_hash_agrees(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        OnnxModel(rehash(folder)).encode(["good film"])


def test_dsee_load_sends_an_export_to_its_own_loader():
    with pytest.raises(InputError, match=r"holds an ONNX model\. Use dsee\.runtime\.OnnxModel"):
        dsee.load(exported("bert").folder)


def test_onnx_model_sends_an_artifact_to_its_own_loader(tmp_path):
    out = dsee.save(exported("bert").model, tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"not an ONNX export but a 'model' artifact\. Use dsee\.load"):
        OnnxModel(out)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes((exported("bert").folder / "model.onnx").read_bytes())
    (tmp_path / "labels.json").write_text(json.dumps({"labels": []}))
    with pytest.raises(ArtifactError, match="not a dsee artifact"):
        OnnxModel(tmp_path)
