"""Counts are true: every number once, and an update of r (in + out) + N per matrix."""

import pytest
from torch import nn
from transformers import BertForMaskedLM

import dsee
from conftest import LABELS, adapted, tiny_bert
from dsee.update import DseeLayer

ALL_LINEARS = r".*layer\.\d+\..*(query|key|value|dense|q_lin|k_lin|v_lin|out_lin|lin1|lin2)"


def tied_bert():
    config = tiny_bert().config
    config.tie_word_embeddings = True
    model = BertForMaskedLM(config)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    return model


@pytest.mark.parametrize(("r", "n_sparse"), [(0, 9), (0, 200), (1, 0), (4, 0), (4, 9)])
def test_an_update_is_r_times_in_plus_out_plus_n_per_matrix(family, r, n_sparse):
    model = adapted(family(), target_modules=ALL_LINEARS, r=r, n_sparse=n_sparse, support="random")
    per_layer = 4 * (r * (32 + 32) + n_sparse) + 2 * (r * (32 + 40) + n_sparse)
    counts = dsee.parameters(model)
    assert counts.update == 3 * per_layer
    head = sum(p.numel() for n, p in model.named_parameters() if "modules_to_save" in n)
    assert counts.trainable == counts.update + head


def test_by_hand_on_bert():
    bare = dsee.parameters(tiny_bert())
    linear, embeddings = 32 * 32 + 32, (100 + 80 + 2) * 32 + 64
    layer = 4 * linear + (32 * 40 + 40) + (40 * 32 + 32) + 2 * 64
    assert bare.total == bare.trainable == embeddings + 3 * layer + linear + 32 * LABELS + LABELS
    assert (bare.update, bare.trainable_share) == (0, 1.0)


def test_a_cut_takes_parameters_off_the_base_and_the_update():
    model = adapted(tiny_bert(), target_modules=ALL_LINEARS, n_sparse=0)
    before = dsee.parameters(model)
    dsee.prune(model, dsee.Heads(2), dsee.Neurons(10))
    after = dsee.parameters(model)
    # 16 of 32 features at the heads, 10 of 40 neurons
    gone_update = 3 * (4 * 4 * 16 + 2 * 4 * 10)
    gone_base = 3 * (3 * (16 * 32 + 16) + 16 * 32 + 10 * 32 + 10 + 10 * 32)
    assert before.update - after.update == gone_update
    assert before.total - after.total == gone_base + gone_update


def test_entries_of_s2_that_went_are_not_counted():
    model = adapted(tiny_bert(), r=0, n_sparse=100, support="random")
    dsee.prune(model, dsee.Heads(3))
    left = sum(len(s.weight) for m in model.modules() if isinstance(m, DseeLayer) for s in m.dsee_S.values())
    assert dsee.parameters(model).update == left < 600


def test_every_adapter_counts():
    model = adapted(tiny_bert())
    one = dsee.parameters(model)
    model.add_adapter("other", dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=3))
    both = dsee.parameters(model)
    assert both.update - one.update == 6 * (2 * 64 + 3)
    assert both.trainable == one.trainable


def test_frozen_parameters_are_not_trainable(family):
    model = family()
    total = dsee.parameters(model).total
    counts = dsee.parameters(model.requires_grad_(False))
    assert (counts.total, counts.trainable, counts.trainable_share) == (total, 0, 0.0)


def test_a_tied_tensor_counts_once():
    model = tied_bert()
    once = sum({id(p): p.numel() for p in model.parameters()}.values())
    assert dsee.parameters(model).total == once
    model.cls.predictions.decoder.weight = nn.Parameter(model.cls.predictions.decoder.weight.detach().clone())
    assert dsee.parameters(model).total == once + 100 * 32


def test_any_module_is_counted():
    assert dsee.parameters(nn.Linear(3, 4)).total == 16
    assert dsee.parameters(nn.Identity()).trainable_share == 0.0


def test_a_merged_model_has_the_parameters_of_its_base():
    assert dsee.parameters(dsee.merge(adapted(tiny_bert()))).total == dsee.parameters(tiny_bert()).total


def test_the_share_is_trainable_over_total():
    counts = dsee.parameters(adapted(tiny_bert()))
    assert counts.trainable_share == counts.trainable / counts.total
    assert 0 < counts.trainable_share < 0.2
