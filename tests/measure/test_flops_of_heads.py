"""The count is right for every task head the mapped families have, and for no head at all."""

import pytest
import torch
import transformers
from flop_oracle import counted
from transformers import BertConfig, BertForNextSentencePrediction

import dsee
from conftest import FAMILIES, POSITIONS, SIZES, VOCABULARY

AUTO = [
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForPreTraining",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
]


def built(auto, family):
    config = FAMILIES[family]().config
    config.num_labels = 2
    return getattr(transformers, auto).from_config(config).eval()


def inputs(auto):
    ids = torch.randint(5, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(0))
    if auto == "AutoModelForMultipleChoice":
        ids = ids.view(2, 2, 10)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("auto", AUTO)
def test_every_task_head(auto, family):
    model = built(auto, family)
    assert dsee.flops(model, 4, 10).total == counted(model, inputs=inputs(auto))


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForTokenClassification"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_task_head_on_a_cut_model(auto, family):
    model = built(auto, family)
    dsee.prune(model, dsee.Heads(2, score="weight"), dsee.Neurons(13))
    assert dsee.flops(model, 4, 10).total == counted(model, inputs=inputs(auto))


def test_next_sentence_prediction():
    config = BertConfig(**SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS)
    model = BertForNextSentencePrediction(config).eval()
    assert dsee.flops(model, 4, 10).total == counted(model, inputs=inputs("AutoModel"))
