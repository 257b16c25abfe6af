"""Recipes may give single modules another rank, scale or N, and put the update on embeddings."""

import pytest
import torch

import dsee
from chain import RECIPE, Recorder, prepare
from dsee.errors import InputError
from dsee.training import load_recipe, run
from dsee.training.chain import preflight
from dsee.training.setting import Setting

WORDS = {"r": 3, "n_sparse": 5, "target_modules": ["query", "word_embeddings"]}
PATTERNS = {
    "rank_pattern": {"word_embeddings": 1},
    "alpha_pattern": {"word_embeddings": 2.0},
    "n_sparse_pattern": {"word_embeddings": 0},
}
# hidden 32, 3 layers, 2 classes
HEAD = 2 * 32 + 2


def recipe_of(folder, model_folder, update, **changes):
    return load_recipe(prepare(folder, model_folder, update=update, export={"onnx": []}, **changes))


def test_words_of_another_rank_go_through_the_whole_chain(tmp_path, model_folder):
    recipe = recipe_of(tmp_path, model_folder, WORDS | PATTERNS)
    result = run(recipe, base=tmp_path, progress=Recorder())
    tuned = dsee.load(tmp_path / "out" / "stages" / "tuned")
    words = tuned.get_base_model().bert.embeddings.word_embeddings
    vocabulary = words.get_base_layer().num_embeddings
    assert words.dsee_scaling["default"] == 2.0
    assert result.stages["tune"]["trainable"] == 3 * (3 * (32 + 32) + 5) + vocabulary + 32 + HEAD
    final = dsee.load(tmp_path / "out" / "model")
    assert not torch.equal(final.bert.embeddings.word_embeddings.weight, words.get_base_layer().weight)
    assert result.stages["merge"]["test"] == result.stages["recover"]["test"]


def test_biases_and_norms_beside_it_go_through_the_whole_chain(tmp_path, model_folder):
    update = WORDS | PATTERNS | {"bias": "dsee_only", "modules_to_save": ["LayerNorm"]}
    weights = {"weights": {"ratio": 0.5, "score": "weight"}}
    recipe = recipe_of(
        tmp_path, model_folder, update, prune={"heads": 0.25, "neurons": 0.4, "calibration": 32} | weights
    )
    result = run(recipe, base=tmp_path, progress=Recorder())
    tuned = dsee.load(tmp_path / "out" / "stages" / "tuned").get_base_model()
    vocabulary = tuned.bert.embeddings.word_embeddings.get_base_layer().num_embeddings
    # a norm behind the embeddings and two in each layer
    small = 3 * 32 + 7 * 2 * 32
    assert result.stages["tune"]["trainable"] == 3 * (3 * (32 + 32) + 5) + vocabulary + 32 + small + HEAD
    final = dsee.load(tmp_path / "out" / "model")
    assert not hasattr(final, "peft_config")
    assert final.bert.embeddings.LayerNorm.bias.any()
    assert final.bert.encoder.layer[0].attention.self.query.bias.any()
    assert result.stages["merge"]["test"] == result.stages["recover"]["test"]


@pytest.mark.parametrize("field", sorted(PATTERNS))
@pytest.mark.parametrize("method", ["dsee", "lora"])
def test_a_key_that_fits_nothing_is_refused_before_anything_is_trained(tmp_path, model_folder, field, method):
    if method == "lora" and field == "n_sparse_pattern":
        pytest.skip("a LoRA has none")
    update = {"target_modules": ["query"], field: {"querry": 1}}
    recipe = recipe_of(tmp_path, model_folder, update, method=method, prune=None)
    with pytest.raises(InputError, match=rf"update.{field}: no module with an update is called 'querry'.*query"):
        preflight(Setting(recipe, tmp_path, tmp_path / "out"))


def test_a_target_that_is_not_there_is_refused_before_anything_is_trained(tmp_path, model_folder):
    recipe = recipe_of(tmp_path, model_folder, RECIPE["update"] | {"target_modules": ["querry"]})
    with pytest.raises(InputError, match=r"is called 'querry'. Did you mean 'query'"):
        preflight(Setting(recipe, tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(("field", "value"), [("rank_pattern", -1), ("alpha_pattern", 0), ("n_sparse_pattern", "many")])
def test_values_out_of_range_are_refused_by_name(tmp_path, model_folder, field, value):
    with pytest.raises(InputError, match=rf"update.{field}.query"):
        recipe_of(tmp_path, model_folder, {field: {"query": value}})
