"""Recipes that mask weights: what they may say, and that a run carries them out."""

import json

import pytest
import torch

import dsee
from chain import Recorder, prepare
from dsee.pruning import masked_linears
from dsee.pruning.blocks import block_sums
from dsee.pruning.targets import mask_targets
from dsee.training import load_recipe, run
from dsee.training.chain import mask_rules_of, preflight
from dsee.training.recipe_file import parse_recipe
from dsee.training.setting import Setting

MINIMAL = {"model": "bert", "data": {"train": "a.csv"}}


def parsed(prune):
    return parse_recipe(MINIMAL | {"prune": prune}, "test").prune


def rules(prune, tmp_path):
    recipe = parse_recipe(MINIMAL | {"prune": prune, "seed": 3}, "test")
    return mask_rules_of(Setting(recipe, tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("prune", "rule"),
    [
        ({"weights": 0.5}, dsee.Weights(0.5, score="fisher", seed=3)),
        (
            {"weights": {"ratio": 0.5, "score": "update", "scope": "layer", "groups": "one", "floor": 0.1}},
            dsee.Weights(0.5, score="update", scope="layer", groups="one", floor=0.1, seed=3),
        ),
        ({"blocks": 0.7}, dsee.Blocks(0.7, score="fisher", seed=3)),
        (
            {"blocks": {"ratio": 0.7, "shape": [8, 1], "targets": ["query"]}},
            dsee.Blocks(0.7, shape=(8, 1), score="fisher", targets=["query"], seed=3),
        ),
        ({"nofm": [2, 4]}, dsee.NofM(2, 4, score="fisher", seed=3)),
        ({"nofm": "2:4"}, dsee.NofM(2, 4, score="fisher", seed=3)),
        ({"nofm": {"n": 1, "m": 4, "score": "wanda"}}, dsee.NofM(1, 4, score="wanda", seed=3)),
    ],
)
def test_each_pattern_has_a_long_and_a_short_form(prune, rule, tmp_path):
    assert rules(prune, tmp_path) == [rule]


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"weights": 1.5}, "prune.weights.ratio"),
        ({"weights": {"ratoi": 0.5}}, "Did you mean 'ratio'"),
        ({"weights": 0.5, "blocks": 0.5}, "weights and blocks are patterns for the same weights; choose one"),
        # what YAML makes of 2:4 without quotes
        ({"nofm": 124}, 'give a pair, such as .2, 4. or "2:4" in quotes'),
        ({"nofm": [2]}, "prune.nofm"),
        ({"blocks": {"ratio": 0.5, "shape": [4]}}, "prune.blocks.shape"),
        ({}, "one of weights, blocks, nofm"),
    ],
)
def test_mistakes_are_named(prune, message):
    with pytest.raises(dsee.InputError, match=message):
        parsed(prune)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"nofm": {"n": 4, "m": 2}}, "0 < n < m"),
        ({"nofm": {"n": 3, "m": 7}}, "no multiple of 7"),
        ({"nofm": [2, 4], "neurons": 3}, "has 37 inputs"),
        ({"weights": {"ratio": 0.5, "score": "fischer"}}, "Did you mean 'fisher'"),
        ({"weights": {"ratio": 0.5, "targets": ["qwery"]}}, "Did you mean 'query'"),
        ({"weights": {"ratio": 0.8, "floor": 0.5}}, "floor=0.5"),
    ],
)
def test_impossible_wishes_fail_before_tuning(prune, message, tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, prune=prune)
    with pytest.raises(dsee.InputError, match=message):
        preflight(Setting(load_recipe(path), tmp_path, tmp_path / "out"))


@pytest.mark.slow
def test_a_run_cuts_masks_recovers_and_merges_under_the_mask(tmp_path, model_folder):
    changes = {
        "prune": {"heads": 0.25, "blocks": {"ratio": 0.5}, "calibration": 32},
        "tune": {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8},
        "recover": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        "export": {"onnx": []},
    }
    recorder = Recorder()
    result = run(load_recipe(prepare(tmp_path, model_folder, **changes)), base=tmp_path, progress=recorder)
    assert all(done == total for done, total in recorder.steps.values())
    out = tmp_path / "out"
    masks = []
    for folder in (out / "stages" / "pruned", out / "stages" / "recovered", out / "model"):
        model = dsee.load(folder)
        assert len(masked_linears(model)) == 18
        masks.append({target.name: target.mask for target in mask_targets(model)})
        for target in mask_targets(model):
            assert not target.weight[~target.mask].any()
            assert set(block_sums(target.mask.to(torch.int32), (4, 1)).unique().tolist()) <= {0, 4}
    assert all(torch.equal(masks[0][n], later[n]) for later in masks[1:] for n in masks[0])
    assert result.stages["merge"]["zeros"] == pytest.approx(0.5, abs=1e-3)
    assert "every zero kept" in result.stages["merge"]["said"][0]
    assert [step["step"] for step in dsee.history(model)] == ["tune", "prune", "prune", "recover", "merge"]
    assert json.dumps(result.stages)
