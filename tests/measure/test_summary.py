"""What ``print(dsee.summary(model))`` shows."""

import pytest
from torch import nn

import dsee
from conftest import adapted, tiny_bert


def test_a_pruned_and_updated_model():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Heads(1), dsee.Neurons(0.5))
    found = dsee.summary(model, sequence=10)
    lines = str(found).splitlines()
    counts = dsee.parameters(model)
    assert lines == [
        "BertForSequenceClassification",
        f"parameters  {counts.total:,}",
        f"trainable   {counts.trainable:,} ({counts.trainable_share:.3%}), of them update {counts.update:,}",
        "heads       3 3 3",
        "neurons     20 20 20",
        f"FLOPs       {dsee.flops(model, 1, 10).total / 1e9:.3f} G for one sentence of 10 tokens",
        "history     prune",
    ]


def test_every_family_is_summed_up(family):
    model = family()
    found = dsee.summary(model)
    assert found.model == type(model).__name__
    assert found.parameters == dsee.parameters(model)
    assert found.structure == {"heads": [4] * 3, "neurons": [40] * 3}
    assert (found.flops, found.sequence) == (dsee.flops(model, 1, 128), 128)
    assert found.history == []
    assert "history" not in str(found)


def test_the_steps_are_listed_in_order():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Heads(1))
    small = dsee.merge(model)
    assert str(dsee.summary(small)).endswith("history     prune -> merge")


@pytest.mark.parametrize("unmapped", [lambda: nn.Linear(3, 4), lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())])
def test_a_model_without_a_map_has_counts_only(unmapped):
    model = unmapped()
    found = dsee.summary(model)
    assert found.structure is None
    assert found.flops is None
    total = sum(p.numel() for p in model.parameters())
    assert str(found).splitlines() == [
        type(model).__name__,
        f"parameters  {total}",
        f"trainable   {total} (100.000%), of them update 0",
    ]
