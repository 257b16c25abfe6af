"""What the configuration refuses, and with which words."""

import pytest
from peft import PeftConfig

import dsee


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0, "n_sparse": 0}, "r=0 and n_sparse=0 leave nothing to train"),
        ({"r": -1}, "r=-1 has to be a whole number"),
        ({"r": 2.5}, r"r=2\.5 has to be a whole number"),
        ({"r": True}, "r=True has to be a whole number"),
        ({"n_sparse": -1}, "n_sparse=-1 has to be a whole number"),
        ({"n_sparse": "64"}, "n_sparse='64' has to be a whole number"),
        ({"dropout": 1.0}, r"dropout=1\.0 is out of range"),
        ({"dropout": -0.1}, r"dropout=-0\.1 is out of range"),
        ({"alpha": 0}, "alpha=0 has to be positive"),
        ({"alpha": -1.0}, r"alpha=-1\.0 has to be positive"),
        ({"alpha": float("nan")}, "alpha=nan has to be positive"),
        ({"bias": "lora_only"}, "bias='lora_only' is unknown"),
        ({"target_modules": ".*query", "layers_to_transform": [0]}, "needs target_modules as a list"),
        ({"layers_pattern": "layer"}, "set layers_to_transform too"),
        ({"rank_pattern": {"query": -1}}, "rank_pattern"),
        ({"n_sparse_pattern": {"query": 2.5}}, "n_sparse_pattern"),
        ({"alpha_pattern": {"query": 0}}, "alpha_pattern"),
    ],
    ids=str,
)
def test_a_field_out_of_its_range_is_refused_by_name(fields, words):
    with pytest.raises(dsee.InputError, match=words):
        dsee.DseeConfig(**fields)


@pytest.mark.parametrize("fields", [{"r": 0}, {"n_sparse": 0}, {"r": 0, "n_sparse": 0, "rank_pattern": {"query": 4}}])
def test_one_part_is_enough(fields):
    config = dsee.DseeConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_a_refused_field_is_a_value_error_too():
    # for callers that know nothing of dsee
    with pytest.raises(ValueError, match="alpha"):
        dsee.DseeConfig(alpha=0)


def test_a_stored_configuration_comes_back_equal_except_that_it_is_stored(tmp_path):
    config = dsee.DseeConfig(
        r=3, alpha=6.0, n_sparse=5, support="random", seed=4, target_modules=["value", "query"], bias="all"
    )
    config.save_pretrained(tmp_path)
    for loader in (PeftConfig, dsee.DseeConfig):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is dsee.DseeConfig
        assert loaded.to_dict() == config.to_dict() | {"support_stored": True}


def test_scale_is_alpha_over_r_and_one_without_a_low_rank_part():
    from conftest import adapted, tiny_bert
    from dsee.update.layer import update_layers

    for r, scale in ((4, 8.0), (8, 4.0), (0, 1.0)):
        layers = update_layers(adapted(tiny_bert(), r=r, alpha=32.0))
        assert {layer.dsee_scaling["default"] for _, layer in layers} == {scale}
