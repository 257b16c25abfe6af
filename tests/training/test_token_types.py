"""Types of tokens reach models that know them, and no others."""

import numpy as np
import pytest
from transformers import (
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from chain import prepare
from conftest import tiny_bert, tiny_tokenizer
from dsee.architectures.inputs import takes_token_types
from dsee.training import load_recipe
from dsee.training.setting import Setting
from writing_tools import gpt2, tokenizer

MAKES = ["input_ids", "token_type_ids", "attention_mask"]


def generic(words):
    """The same tokenizer, which makes types whatever the model."""
    names = {"pad_token": words.pad_token, "eos_token": words.eos_token, "unk_token": words.unk_token}
    return PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer, model_input_names=MAKES, **names)


def setting(folder, model, **update):
    given = {"r": 2, "n_sparse": 4, "target_modules": ["c_attn"]} | update
    return Setting(load_recipe(prepare(folder, model, update=given, prune=None)), folder, folder / "out")


def test_gpt2_is_not_tuned_on_types_that_a_generic_tokenizer_makes(tmp_path):
    folder = tmp_path / "gpt2"
    gpt2(num_labels=2).save_pretrained(folder)
    generic(tokenizer()).save_pretrained(folder)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(folder)("the mill")
    found = setting(tmp_path, folder)
    for part in found.parts.values():
        assert {key for row in part.features for key in row} == {"input_ids", "attention_mask", "labels"}
    batch = found.collate([dict(row) for row in found.parts["train"].features[:4]])
    assert "token_type_ids" not in batch
    # what would be added otherwise is the word of token 0
    model = found.new_model().eval()
    plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wrong = model(**batch, token_type_ids=batch["input_ids"] * 0).logits
    assert np.abs((plain - wrong).detach().numpy()).max() > 1e-4
    found.tokenizer.save_pretrained(tmp_path / "saved")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "saved")("the mill")


def test_bert_is(tmp_path):
    folder = tmp_path / "bert"
    tiny_bert().save_pretrained(folder)
    generic(tiny_tokenizer()).save_pretrained(folder)
    features = setting(tmp_path, folder, target_modules=["query"]).parts["train"].features
    assert all("token_type_ids" in row for row in features)


@pytest.mark.parametrize(
    ("config", "takes"),
    [
        (BertConfig(), True),
        (ElectraConfig(), True),
        # with one type there is nothing to tell apart
        (RobertaConfig(type_vocab_size=1), False),
        (DebertaV2Config(), False),
        (DistilBertConfig(), False),
        (LlamaConfig(), False),
    ],
)
def test_who_takes_them(config, takes):
    assert takes_token_types(config) == takes
