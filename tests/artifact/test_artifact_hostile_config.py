"""A config.json that lies, with hashes that agree with the lie, gives an error and not noise or a crash."""

import json
import shutil

import pytest
from artifact_tools import edit_config, rehash, unevenly_cut
from safetensors.torch import load_file, save_file

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError

NEURONS = [35, 39, 13]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return dsee.save(adapted(unevenly_cut(tiny_bert())), folder / "out")


@pytest.fixture
def artifact(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


HEADS = {
    "zero": [0, 1, 4],
    "negative": [-1, 1, 4],
    "too large": [5, 1, 4],
    "too short": [3, 1],
    "too long": [3, 1, 4, 4],
    "empty": [],
    "bool": [3, True, 4],
    "strings": ["3", "1", "4"],
    "floats": [3.0, 1.0, 4.0],
    "nested": [[3], [1], [4]],
    "null": None,
    "text": "314",
    "number": 3,
    "huge": [3, 1, 10**30],
}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
def test_a_structure_that_cannot_be_is_refused(artifact, heads):
    edit_config(artifact, dsee_structure={"heads": heads, "neurons": NEURONS})
    with pytest.raises(ArtifactError, match=r"config\.json: dsee_structure"):
        dsee.load(artifact)


@pytest.mark.parametrize(
    "structure",
    [None, [], "x", {}, {"heads": [3, 1, 4]}, {"heads": [3, 1, 4], "neurons": NEURONS, "more": [1, 1, 1]}],
    ids=repr,
)
def test_a_structure_without_both_lists_is_refused(artifact, structure):
    edit_config(artifact, dsee_structure=structure)
    with pytest.raises(ArtifactError, match=r"config\.json: dsee_structure"):
        dsee.load(artifact)


def test_a_missing_structure_is_refused(artifact):
    path = artifact / "config.json"
    content = json.loads(path.read_text())
    del content["dsee_structure"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"config\.json: dsee_structure"):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize("heads", [[4, 1, 4], [3, 2, 4], [3, 1, 3]], ids=repr)
def test_a_structure_that_the_weights_do_not_have_is_refused(artifact, heads):
    edit_config(artifact, dsee_structure={"heads": heads, "neurons": NEURONS})
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(artifact)


@pytest.mark.parametrize("name", ["NoSuchModel", "AutoModel", "BertConfig", "PreTrainedModel", "__doc__", "", 3, None])
@pytest.mark.parametrize("model_type", ["bert", "dsee_bert"])
def test_an_unknown_architecture_is_refused(artifact, name, model_type):
    edit_config(artifact, architectures=[name], model_type=model_type)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(artifact)


@pytest.mark.parametrize("value", [[], {}, None, "Bert", 3], ids=repr)
def test_architectures_that_are_no_list_of_names_are_refused(artifact, value):
    edit_config(artifact, architectures=value)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(artifact)


@pytest.mark.parametrize("value", ["dsee_nosuch", "nosuch", "dsee_", "dsee_roberta", "bert", "gpt2", None, 3, []])
def test_another_model_type_is_refused(artifact, value):
    edit_config(artifact, model_type=value)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(artifact)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0},
        {"hidden_size": "x"},
        {"hidden_size": 31},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 2},
        {"intermediate_size": None},
        {"hidden_act": "nosuch"},
        {"dtype": "nosuch"},
        {"vocab_size": 10},
    ],
    ids=repr,
)
def test_a_value_that_makes_no_such_model_is_refused(artifact, change):
    edit_config(artifact, **change)
    with pytest.raises(ArtifactError, match=r"config\.json|" + str(artifact)):
        dsee.load(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 200_000], ids=["0", "1", "2", "3", "4", "deep"])
@pytest.mark.parametrize("name", ["config.json", "adapter/adapter_config.json"])
def test_a_configuration_that_is_none_is_refused(artifact, name, text):
    (artifact / name).write_text(text)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_weights_with_a_tensor_missing_are_refused(artifact, name):
    # transformers and PEFT would put random numbers in its place and go on
    weights = load_file(artifact / name)
    del weights[next(key for key in sorted(weights) if "query" in key and key.endswith("weight"))]
    save_file(weights, artifact / name, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="query"):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("data", [b"", b"xx", b"\xff" * 64, b"\x02" + bytes(7) + b"{}"], ids=range(4))
def test_weights_that_are_no_weights_are_refused(artifact, name, data):
    (artifact / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_weights_that_are_absent_are_refused(artifact, name):
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(rehash(artifact))


def test_an_adapted_artifact_without_its_update_is_refused(artifact):
    shutil.rmtree(artifact / "adapter")
    with pytest.raises(ArtifactError, match="adapter"):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_update_is_not_looked_for_on_the_hub(artifact, monkeypatch, name):
    # seen from its parent folder, "out/adapter" could be the name of someone's repository
    asked = []

    def ask(*arguments, **_):
        asked.append(arguments)
        raise OSError("there is no network in this test")

    for place in ("config.hf_hub_download", "utils.save_and_load.hf_hub_download", "utils.save_and_load.file_exists"):
        monkeypatch.setattr(f"peft.{place}", ask)
    (artifact / "adapter" / name).unlink()
    monkeypatch.chdir(rehash(artifact).parent)
    with pytest.raises(ArtifactError, match=name):
        dsee.load("out")
    assert asked == []


def test_an_update_for_another_base_is_refused(artifact, tmp_path):
    other = dsee.save(adapted(tiny_bert()), tmp_path / "other")
    shutil.rmtree(artifact / "adapter")
    shutil.copytree(other / "adapter", artifact / "adapter")
    with pytest.raises(ArtifactError):
        dsee.load(rehash(artifact))
