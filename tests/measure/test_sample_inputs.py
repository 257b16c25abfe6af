"""The inputs that models are measured with."""

import pytest
import torch

import dsee
from conftest import POSITIONS, VOCABULARY, adapted, tiny_bert
from dsee.measure.sample import longest_input, sample_inputs


def test_shape_and_range(family):
    inputs = sample_inputs(family(), 3, 17)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 17)
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.int64
    assert inputs["input_ids"].min() >= 5
    assert inputs["input_ids"].max() < VOCABULARY
    assert inputs["attention_mask"].all()


def test_the_same_arguments_give_the_same_tokens():
    model = tiny_bert()
    torch.manual_seed(0)
    one = sample_inputs(model, 2, 9)["input_ids"]
    torch.manual_seed(1)
    assert torch.equal(one, sample_inputs(model, 2, 9)["input_ids"])
    assert not torch.equal(one, sample_inputs(model, 2, 10)["input_ids"][:, :9])


def test_padding_ends_every_other_sentence_halfway():
    mask = sample_inputs(tiny_bert(), 4, 9, padded=True)["attention_mask"]
    assert mask.sum(1).tolist() == [9, 5, 9, 5]
    assert mask[1].tolist() == [1] * 5 + [0] * 4


def test_one_sentence_is_never_padded():
    assert sample_inputs(tiny_bert(), 1, 9, padded=True)["attention_mask"].all()


def test_the_longest_input_runs_and_one_token_more_does_not(family):
    for model in (family(), adapted(family())):
        assert longest_input(model) == POSITIONS
        with torch.no_grad():
            assert model(**sample_inputs(model, 1, POSITIONS)).logits.isfinite().all()
        with pytest.raises(dsee.InputError, match=f"sequence={POSITIONS + 1} is longer than the {POSITIONS} tokens"):
            sample_inputs(model, 1, POSITIONS + 1)


def test_latency_says_so_too(family):
    with pytest.raises(dsee.InputError, match="longer than the 80 tokens this model can take"):
        dsee.latency(family(), sequence=81, runs=1)
