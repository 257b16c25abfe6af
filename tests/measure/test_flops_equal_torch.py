"""The analytic count equals PyTorch's counter for every state of a model: dense, cut, updated, merged."""

import pytest
from flop_oracle import ALL_LINEARS, counted

import dsee
from conftest import adapted, logits, tiny_bert

UPDATES = {
    "query and value": {},
    "all linears": {"target_modules": ALL_LINEARS},
    "all linears and the pooler": {"target_modules": ALL_LINEARS + "|.*pooler.dense"},
}


def cut(model):
    dsee.prune(model, dsee.Heads(5, score="random", scope="global"), dsee.Neurons(50, score="random", scope="global"))
    return model


@pytest.mark.parametrize(("size", "length"), [(1, 1), (4, 10), (3, 80)])
def test_dense(family, size, length):
    model = family()
    assert dsee.flops(model, size, length).total == counted(model, size, length)


def test_cut(family):
    dense = dsee.flops(family(), 4, 10).total
    model = cut(family())
    assert dsee.flops(model, 4, 10).total == counted(model) < dense


@pytest.mark.parametrize("update", UPDATES)
def test_unmerged_low_rank(family, update):
    model = adapted(family(), n_sparse=0, **UPDATES[update])
    assert dsee.flops(model, 4, 10).total == counted(model)
    cut(model)
    assert dsee.flops(model, 4, 10).total == counted(model)


def test_unmerged_with_s2_is_more_by_two_operations_per_entry_and_token(family):
    model = cut(adapted(family(), support="random", target_modules=ALL_LINEARS))
    entries = sum(module.n_sparse for module in model.modules() if type(module).__name__ == "SparseDelta")
    assert entries > 0
    assert dsee.flops(model, 4, 10).total == counted(model) + 2 * 40 * entries


def test_merged_into_the_weights(family):
    model = cut(adapted(family()))
    unmerged = dsee.flops(model, 4, 10)
    model.merge_adapter()
    merged = dsee.flops(model, 4, 10)
    assert merged.total == counted(model)
    assert (merged.update, merged.total) == (0, unmerged.total - unmerged.update)
    model.unmerge_adapter()
    assert dsee.flops(model, 4, 10).total == unmerged.total


def test_merged_and_unloaded(family):
    bare = cut(family())
    model = dsee.merge(cut(adapted(family())))
    assert dsee.flops(model, 4, 10).total == counted(model) == counted(bare)


def test_a_disabled_update_costs_nothing(family):
    model = adapted(family(), n_sparse=0)
    with model.disable_adapter():
        assert dsee.flops(model, 4, 10).total == counted(model) == counted(family())
    assert dsee.flops(model, 4, 10).total == counted(model) > counted(family())


def test_only_active_adapters_cost():
    model = adapted(tiny_bert(), n_sparse=0, task_type=None)
    model.add_adapter("wide", dsee.DseeConfig(r=8, n_sparse=0))
    narrow = dsee.flops(model, 4, 10).total
    assert narrow == counted(model)
    model.set_adapter("wide")
    assert dsee.flops(model, 4, 10).total == counted(model) > narrow
    model.base_model.set_adapter(["default", "wide"])
    assert dsee.flops(model, 4, 10).total == counted(model)


def test_the_kind_of_attention_does_not_matter(family):
    model = family()
    model.set_attn_implementation("sdpa")
    logits(model)
    with_sdpa = dsee.flops(model, 4, 10)
    model.set_attn_implementation("eager")
    assert dsee.flops(model, 4, 10) == with_sdpa
