"""The baselines on models that write: Conv1D, no biases, a head that is tied or was trained before."""

import pytest
import torch
from test_writing_chain import ground, recipe_for  # noqa: F401 - a fixture

import dsee
from dsee.errors import InputError
from dsee.training import load_recipe, run
from dsee.training.methods import prepared, settled, train_only
from dsee.training.recipe_file import parse_recipe
from writing_tools import MODELS

BASE = {"model": "m", "task": "data-to-text", "data": {"train": "t.jsonl"}}


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_lora_becomes_an_update_of_the_same_logits(family, targets):
    recipe = parse_recipe(BASE | {"method": "lora", "update": {"r": 3, "alpha": 5, "target_modules": targets}}, "r")
    torch.manual_seed(0)
    model = prepared(recipe, MODELS[family](), None).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    trained = dsee.parameters(model).trainable
    batch = {"input_ids": torch.arange(1, 11).reshape(2, 5)}
    with torch.no_grad():
        before = model(**batch).logits
        found = settled(recipe, model)
        assert torch.allclose(found(**batch).logits, before, atol=1e-5)
    assert found.peft_config["default"].n_sparse == 0
    assert dsee.parameters(found).trainable == trained


def test_the_head_stays_and_a_model_without_biases_is_refused():
    model = MODELS["gpt2"]()
    train_only(model, "bitfit")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("bias")}
    llama = MODELS["llama"]()
    with pytest.raises(InputError, match="method: bitfit: a LlamaForCausalLM has no biases to train"):
        train_only(llama, "bitfit")
    train_only(llama, "norms")
    assert {n for n, p in llama.named_parameters() if p.requires_grad} == {
        n for n, _ in llama.named_parameters() if "norm" in n
    }


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), [("gpt2", "lora"), ("gpt2", "full"), ("llama", "norms")])
def test_a_baseline_writes(ground, tmp_path, family, method):  # noqa: F811 - the fixture
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(ground, folder)
    one = {"epochs": 1, "learning_rate": 0.01, "batch_size": 16}
    changes = {"method": method, "tune": one, "recover": one, "prune": {"weights": {"ratio": 0.2, "score": "weight"}}}
    path = recipe_for(folder, family, **changes)
    if method == "lora":
        text = path.read_text(encoding="utf-8").replace("  n_sparse: 8\n", "")
    else:
        import yaml

        text = yaml.safe_dump(
            {k: v for k, v in yaml.safe_load(path.read_text(encoding="utf-8")).items() if k != "update"}
        )
    path.write_text(text, encoding="utf-8")
    result = run(load_recipe(path), base=folder)
    assert result.stages["recover"]["zeros"] == pytest.approx(0.2, abs=2e-3)
    assert result.stages["merge"]["zeros"] == pytest.approx(0.2, abs=2e-3)
    assert "bleu" in result.stages["write-recovered"]["scores"]
