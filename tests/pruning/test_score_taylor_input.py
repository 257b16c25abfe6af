"""Scoring with data needs data, with labels."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, BatchEncoding

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.architectures import structure
from dsee.pruning import plan_for

RULES = [dsee.Heads(0.25, score="taylor"), dsee.Neurons(0.5, score="taylor")]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (None, "pass calibration="),
        ([], "calibration set is empty"),
        ([batch()], "no labels"),
        ([batch(labels=True), batch()], "no labels"),
    ],
    ids=["none", "empty", "without labels", "partly without labels"],
)
def test_what_is_missing_is_said_and_nothing_is_cut(rule, calibration, reason):
    model = adapted(tiny_bert())
    with pytest.raises(dsee.InputError, match=reason):
        dsee.prune(model, rule, calibration=calibration)
    assert structure(model) == {"heads": [4] * 3, "neurons": [40] * 3}


@pytest.mark.parametrize("score", ["weight", "random"])
def test_other_scores_do_not_look_at_the_data(score):
    model = tiny_bert()
    with_data = plan_for(model, dsee.Neurons(0.5, score=score), [{"input_ids": "not a tensor"}])
    assert with_data == plan_for(model, dsee.Neurons(0.5, score=score))


def test_a_data_loader_of_encodings_will_do():
    model = tiny_bert()
    rows = [{name: values[i] for name, values in batch(4, labels=True).items()} for i in range(4)]

    def collate(part):
        return BatchEncoding({name: torch.stack([row[name] for row in part]) for name in part[0]})

    loader = DataLoader(rows, batch_size=2, collate_fn=collate)
    assert plan_for(model, RULES[0], loader) == plan_for(model, RULES[0], [collate(rows[:2]), collate(rows[2:])])


def test_a_model_that_returns_tuples_is_scored_too():
    expected = plan_for(tiny_bert(), RULES[0], [batch(labels=True)])
    assert plan_for(tiny_bert(return_dict=False), RULES[0], [batch(labels=True)]) == expected


def test_another_task_counts_each_sentence():
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(tiny_bert().config).eval()
    inputs = batch()
    plan = plan_for(model, RULES[1], [inputs | {"labels": inputs["input_ids"] % 3}])
    assert [len(layer.neurons) for layer in plan] == [20, 20, 20]
