"""Task heads other than classification, cut unevenly."""

import pytest
import torch
import transformers
from artifact_tools import unevenly_cut
from transformers import BertConfig

import dsee
from conftest import POSITIONS, SIZES, VOCABULARY, batch

HEADS = [
    "BertModel",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertLMHeadModel",
]


def _cut(name):
    torch.manual_seed(0)
    config = BertConfig(**SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, is_decoder="LMHead" in name)
    return unevenly_cut(getattr(transformers, name)(config)).eval()


@pytest.mark.parametrize("name", HEADS)
def test_every_head_comes_back_to_the_last_bit(name, tmp_path):
    model = _cut(name)
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert type(loaded).__name__ == name
    with torch.no_grad():
        before, after = model(**batch()).to_tuple(), loaded(**batch()).to_tuple()
    tensors = [(a, b) for a, b in zip(before, after, strict=True) if isinstance(a, torch.Tensor)]
    assert tensors
    for a, b in tensors:
        assert torch.equal(a, b)


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path):
    out = dsee.save(_cut("BertForMaskedLM"), tmp_path / "out")
    loaded = dsee.load(out)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    with _open(out / "model.safetensors") as stored:
        shapes = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118 - not a dict
    assert shapes.count([VOCABULARY, SIZES["hidden_size"]]) == 1


def _open(path):
    from safetensors import safe_open

    return safe_open(path, framework="pt")
