"""What the parts of the count mean, by hand on one BERT: width 32, 4 heads of 8, 40 neurons, 3 layers."""

import pytest
import torch
from flop_oracle import counted

import dsee
from conftest import LABELS, adapted, tiny_bert

TOKENS, BATCH, LENGTH = 40, 4, 10


def test_dense_by_hand():
    found = dsee.flops(tiny_bert(), BATCH, LENGTH)
    assert found.projections == 3 * 4 * 2 * TOKENS * 32 * 32
    assert found.attention == 3 * 2 * 2 * BATCH * 4 * LENGTH**2 * 8
    assert found.feed_forward == 3 * 2 * 2 * TOKENS * 32 * 40
    assert found.rest == 2 * BATCH * (32 * 32 + 32 * LABELS)
    assert found.update == 0
    assert found.encoder == found.projections + found.attention + found.feed_forward
    assert found.total == found.effective == found.encoder + found.rest


def test_cut_by_hand():
    model = tiny_bert()
    dsee.prune(model, dsee.Heads(3, score="weight"), dsee.Neurons(30))
    found = dsee.flops(model, BATCH, LENGTH)
    assert found.projections == 3 * 4 * 2 * TOKENS * 32 * 8
    assert found.attention == 3 * 2 * 2 * BATCH * 1 * LENGTH**2 * 8
    assert found.feed_forward == 3 * 2 * 2 * TOKENS * 32 * 10


def test_update_by_hand():
    found = dsee.flops(adapted(tiny_bert(), r=4, n_sparse=9), BATCH, LENGTH)
    assert found.update == 3 * 2 * 2 * TOKENS * (4 * (32 + 32) + 9)
    assert found.encoder == found.projections + found.attention + found.feed_forward + found.update


def test_one_sentence_of_128_tokens_is_the_default():
    assert dsee.flops(tiny_bert()) == dsee.flops(tiny_bert(), batch=1, sequence=128)


@pytest.mark.parametrize("updated", [False, True])
def test_effective_leaves_out_the_zeros_of_the_weights(updated):
    model = adapted(tiny_bert()) if updated else tiny_bert()
    full = dsee.flops(model, BATCH, LENGTH)
    inner = model.get_base_model() if updated else model
    first = inner.bert.encoder.layer[0]
    query = first.attention.self.query
    with torch.no_grad():
        (query.get_base_layer() if updated else query).weight.view(-1)[:100] = 0.0
        first.output.dense.weight.view(-1)[:7] = 0.0
        inner.bert.pooler.dense.weight.view(-1)[:5] = 0.0
    found = dsee.flops(model, BATCH, LENGTH)
    assert found.total == full.total == full.effective
    assert found.effective == full.effective - 2 * TOKENS * 107 - 2 * BATCH * 5


def test_torch_takes_zeros_for_work_and_effective_does_not():
    model = tiny_bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = dsee.flops(model, BATCH, LENGTH)
    assert counted(model) == found.total
    assert found.effective == found.attention


def test_zeros_of_biases_and_embeddings_do_not_count():
    model = tiny_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias.zero_()
        model.bert.embeddings.word_embeddings.weight.zero_()
    assert dsee.flops(model).effective == dsee.flops(model).total


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": -1}, {"sequence": 0}, {"sequence": -5}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(dsee.InputError, match="at least 1"):
        dsee.flops(tiny_bert(), **wrong)


def test_counting_changes_nothing():
    model = adapted(tiny_bert()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dsee.flops(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
