"""The history says, as plain data and in order, what was done to a model."""

import json

from torch import nn

import dsee
from conftest import adapted, batch, tiny_bert


def test_a_new_model_has_none(family):
    assert dsee.history(family()) == []


def test_prune_and_merge_are_recorded_in_order(family):
    model = adapted(family())
    dsee.prune(model, dsee.Heads(0.25, scope="global"))
    dsee.prune(model, dsee.Neurons(3, score="random", seed=5))
    steps = dsee.history(dsee.merge(model))
    assert [step["step"] for step in steps] == ["prune", "prune", "merge"]
    assert {step["dsee"] for step in steps} == {dsee.__version__}
    assert steps[0]["rules"] == [{"rule": "heads", "amount": 0.25, "score": "update", "scope": "global", "seed": 0}]
    assert steps[1]["rules"][0].items() >= {"rule": "neurons", "amount": 3, "score": "random", "seed": 5}.items()
    assert steps[0]["before"] == {"heads": [4] * 3, "neurons": [40] * 3}
    assert steps[0]["after"] == steps[1]["before"]
    assert steps[1]["after"]["neurons"] == [37] * 3
    assert steps[2].items() >= {"policy": "masked", "zeros_before": 0.0, "zeros_after": 0.0}.items()


def test_it_is_plain_json():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Heads(0.25, score="taylor"), dsee.Neurons(0.5), calibration=[batch(labels=True)])
    steps = dsee.history(dsee.merge(model))
    assert json.loads(json.dumps(steps, allow_nan=False)) == steps


def test_a_rule_can_be_repeated_from_its_facts():
    rule = dsee.Neurons(0.5, score="random", scope="global", seed=3, multiple_of=16)
    facts = rule.facts()
    assert facts.pop("rule") == "neurons"
    assert dsee.Neurons(**facts) == rule


def test_it_is_the_same_through_peft_and_without():
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Heads(1))
    assert dsee.history(model) == dsee.history(model.get_base_model())
    assert len(dsee.history(model)) == 1


def test_the_same_work_gives_the_same_history():
    def steps():
        model = adapted(tiny_bert())
        dsee.prune(model, dsee.Heads(0.25), dsee.Neurons(0.5))
        return dsee.history(dsee.merge(model))

    assert steps() == steps()


def test_changing_what_was_handed_out_changes_no_record():
    model = tiny_bert()
    report = dsee.prune(model, dsee.Heads(1, score="weight"))
    handed_out = dsee.history(model)
    handed_out[0]["step"] = "something else"
    handed_out[0]["before"]["heads"][0] = 99
    report.after["heads"][0] = 99
    kept = dsee.history(model)
    assert kept[0]["step"] == "prune"
    assert kept[0]["before"]["heads"] == [4, 4, 4]
    assert kept[0]["after"]["heads"] == [3, 3, 3]


def test_a_model_without_a_map_has_an_empty_one():
    assert dsee.history(nn.Linear(2, 2)) == []
