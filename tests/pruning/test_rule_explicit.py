"""Rules that name what goes, instead of ranking."""

import json

import pytest
import torch

import dsee
from conftest import batch, logits, tiny_bert
from cut_families import build
from dsee.architectures import structure
from dsee.pruning import LayerPlan, plan_for
from dsee.surgery import cut


@pytest.mark.parametrize("explicit", [{0: [3, 1], 2: (0,)}, [[1, 3], [], [0]], {"2": [0], "0": [1, 3, 3]}])
def test_by_layer_or_one_list_for_each(explicit):
    plan = plan_for(tiny_bert(), dsee.Heads(explicit=explicit))
    assert plan == [LayerPlan(heads=(1, 3)), LayerPlan(), LayerPlan(heads=(0,))]


def test_what_is_named_goes_and_nothing_else():
    model, expected = tiny_bert(), tiny_bert()
    report = dsee.prune(model, dsee.Heads(explicit={1: [0, 2]}), dsee.Neurons(explicit=[[0], [5, 39], [1, 2, 3]]))
    assert report.after == structure(model) == {"heads": [4, 2, 4], "neurons": [39, 38, 37]}
    cut(expected, [LayerPlan((), (0,)), LayerPlan((0, 2), (5, 39)), LayerPlan((), (1, 2, 3))])
    assert torch.equal(logits(model, batch()), logits(expected, batch()))


def test_indices_of_shared_keys_and_values_are_of_these():
    model = build("llama")
    dsee.prune(model, dsee.Heads(explicit={1: [0, 3]}))
    assert [layer.self_attn.k_proj.out_features for layer in model.model.layers] == [32, 16, 32]
    assert [layer.self_attn.q_proj.out_features for layer in model.model.layers] == [64, 32, 64]


@pytest.mark.parametrize("rule", [dsee.Heads(explicit={0: [1, 3]}), dsee.Neurons(explicit=[[7]])])
def test_a_rule_is_repeated_from_its_facts_in_the_history(rule):
    model = tiny_bert()
    dsee.prune(model, rule)
    [facts] = json.loads(json.dumps(dsee.history(model)))[0]["rules"]
    assert facts.pop("rule") == rule.unit
    again = type(rule)(**facts)
    assert again == rule
    assert hash(again) == hash(rule)


@pytest.mark.parametrize("rule", [dsee.Heads, dsee.Neurons])
@pytest.mark.parametrize(
    "explicit",
    [{}, [], [[], []], {0: []}, {-1: [0]}, {0: [-1]}, {0: [1.0]}, {0: [True]}, {0: 1}, {0: "12"}, "12", 3, {"a": [1]}],
    ids=repr,
)
def test_what_names_nothing_is_refused(rule, explicit):
    with pytest.raises(dsee.InputError, match="names nothing that could go"):
        rule(explicit=explicit)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"amount": 0.5}, "amount"),
        ({"score": "taylor"}, "score"),
        ({"scope": "global"}, "scope"),
        ({"seed": 3}, "seed"),
    ],
)
def test_nothing_is_ranked_beside_it(other, name):
    with pytest.raises(dsee.InputError, match=f"leave out {name}"):
        dsee.Heads(explicit={0: [1]}, **other)


def test_neither_how_many_nor_which_is_refused():
    with pytest.raises(dsee.InputError, match=r"None is neither .*explicit="):
        dsee.Heads()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (dsee.Heads(explicit={3: [0]}), "layer 3; the model has layers 0 to 2"),
        (dsee.Heads(explicit={1: [4]}), "layer 1, which has heads 0 to 3"),
        (dsee.Neurons(explicit={1: [40]}), "layer 1, which has neurons 0 to 39"),
        (dsee.Heads(explicit=[[0, 1, 2, 3]]), "all heads of layer 0"),
        (dsee.Neurons(explicit={2: range(40)}), "all neurons of layer 2"),
    ],
)
def test_what_is_not_there_is_refused_and_changes_nothing(rule, message):
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match=message):
        dsee.prune(model, rule)
    assert structure(model) == {"heads": [4] * 3, "neurons": [40] * 3}
