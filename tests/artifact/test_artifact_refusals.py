"""What cannot be saved is refused, by name, and nothing is written."""

import pytest
import torch
from artifact_tools import beside
from peft import LoraConfig, get_peft_model

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError, InputError


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), "a model", None], ids=["Linear", "str", "None"])
def test_what_is_no_transformers_model_is_refused_by_name(thing, tmp_path):
    with pytest.raises(InputError, match=f"{type(thing).__name__} is not a transformers model"):
        dsee.save(thing, tmp_path / "out")
    assert beside(tmp_path / "out") == []


def test_a_merged_update_is_refused_with_the_remedy(tmp_path):
    model = adapted(tiny_bert())
    model.merge_adapter()
    with pytest.raises(InputError, match=r"dsee\.merge\(model\).*unmerge_adapter"):
        dsee.save(model, tmp_path / "out")
    assert beside(tmp_path / "out") == []
    model.unmerge_adapter()
    assert dsee.save(model, tmp_path / "out").is_dir()


def test_a_merged_lora_is_refused_too(tmp_path):
    # its base already holds the update: loaded again, the update would be added twice
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(tiny_bert(), config)
    model.merge_adapter()
    with pytest.raises(InputError, match="merged"):
        dsee.save(model, tmp_path / "out")


@pytest.mark.parametrize("facts", [{"when": object()}, {1: "one"}], ids=["value", "key"])
def test_facts_that_are_not_plain_data_are_refused(facts, tmp_path):
    with pytest.raises(InputError, match="facts"):
        dsee.save(tiny_bert(), tmp_path / "out", facts=facts)
    assert not (tmp_path / "out").exists()
    assert beside(tmp_path / "out") == []


def test_the_name_of_a_file_is_refused_and_the_file_stays(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match=r"out is a file"):
        dsee.save(tiny_bert(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="not written by dsee"):
        dsee.save(tiny_bert(), out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert beside(out) == []


def test_a_plain_transformers_folder_is_left_alone(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "out")
    with pytest.raises(ArtifactError, match="not written by dsee"):
        dsee.save(tiny_bert(1), tmp_path / "out")


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert dsee.load(dsee.save(tiny_bert(), tmp_path / "out"))


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="could not be written"):
        dsee.save(tiny_bert(), tmp_path / "file" / "out")
