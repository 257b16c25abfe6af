"""Ranks, scales and sizes of single matrices."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import close, dense_update, scrambled

LAST = "layer.2.attention.self.query"


def parts(model):
    """Path's end -> (r, N, s)."""
    return {
        name.partition("encoder.")[2]: (
            layer.dsee_V["default"].out_features if "default" in layer.dsee_V else 0,
            layer.dsee_S["default"].n_sparse if "default" in layer.dsee_S else 0,
            layer.dsee_scaling["default"],
        )
        for name, layer in update_layers(model)
    }


def test_patterns_set_single_matrices_and_leave_the_others():
    model = adapted(
        tiny_bert(),
        rank_pattern={"value": 2},
        alpha_pattern={LAST: 8.0},
        n_sparse_pattern={r"layer\.[01]\.attention\.self\.query": 3},
    )
    found = parts(model)
    assert {found.pop(f"layer.{i}.attention.self.value") for i in range(3)} == {(2, 9, 16.0)}
    assert {found.pop(f"layer.{i}.attention.self.query") for i in range(2)} == {(4, 3, 8.0)}
    assert found == {LAST: (4, 9, 2.0)}


def test_the_forward_follows_the_patterns():
    model = adapted(tiny_bert(), rank_pattern={"value": 2}, alpha_pattern={LAST: 8.0}, n_sparse_pattern={"query": 3})
    base = tiny_bert()
    for name, layer in update_layers(model):
        base.get_submodule(name.removeprefix("base_model.model.")).weight.data += dense_update(layer).float()
    torch.testing.assert_close(logits(model), logits(base), **close())


def test_patterns_are_stored_and_followed_at_load(tmp_path):
    model = scrambled(adapted(tiny_bert(), rank_pattern={"value": 2}, n_sparse_pattern={"query": 3}))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert parts(loaded) == parts(model)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"value": 0}, "n_sparse": 9},
        {"rank_pattern": {"value": 4}, "r": 0, "n_sparse": 9},
        {"n_sparse_pattern": {"value": 0}},
        {"n_sparse_pattern": {"value": 4}, "n_sparse": 0},
    ],
    ids=str,
)
def test_a_part_can_be_left_out_on_some_matrices(config, tmp_path):
    model = scrambled(adapted(tiny_bert(), **config))
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), before)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), before, **close())


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0, "n_sparse_pattern": {"value": 0}},
        {"n_sparse": 0, "rank_pattern": {"value": 0}},
        {"r": 0, "n_sparse": 0, "rank_pattern": {"query": 4}},
    ],
    ids=str,
)
def test_a_matrix_left_without_any_part_is_the_bare_base(config):
    model, base = adapted(tiny_bert(), **config), tiny_bert()
    for name, layer in update_layers(model):
        if layer.has_update("default"):
            base.get_submodule(name.removeprefix("base_model.model.")).weight.data += dense_update(layer).float()
    torch.testing.assert_close(logits(model), logits(base), **close())


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern", "n_sparse_pattern"])
def test_a_pattern_that_fits_no_matrix_is_not_passed_over_in_silence(pattern):
    config = dsee.DseeConfig(target_modules=["query"], support="magnitude", **{pattern: {"qurey": 5}})
    with pytest.warns(RuntimeWarning, match=f"{pattern}.*qurey"):
        get_peft_model(tiny_bert(), config)


def test_each_matrix_has_a_support_of_its_own_that_does_not_depend_on_the_others():
    def supports(**config):
        model = adapted(tiny_bert(), support="random", n_sparse=20, **config)
        return {name: layer.dsee_S["default"].indices.tolist() for name, layer in update_layers(model)}

    both, alone = supports(target_modules=["query", "value"]), supports(target_modules=["value"])
    assert len({tuple(positions) for positions in both.values()}) == len(both) == 6
    assert alone == {name: positions for name, positions in both.items() if name.endswith("value")}


def test_the_seed_of_the_configuration_moves_every_support_and_the_global_one_none():
    def supports(seed, outside):
        base = tiny_bert()
        torch.manual_seed(outside)
        config = dsee.DseeConfig(support="random", n_sparse=20, seed=seed)
        return [layer.dsee_S["default"].indices.tolist() for _, layer in update_layers(get_peft_model(base, config))]

    assert supports(0, 1) == supports(0, 2)
    assert all(a != b for a, b in zip(supports(0, 1), supports(1, 1), strict=True))
