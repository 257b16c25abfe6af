"""The baselines: what each trains, and that each goes through the whole chain."""

import pytest
import torch
import yaml

import dsee
from chain import Recorder, prepare
from conftest import FAMILIES, tiny_bert
from dsee.artifact.manifest import sha256
from dsee.errors import InputError
from dsee.report import rows, write_report
from dsee.training import load_recipe, run
from dsee.training.chain import preflight
from dsee.training.methods import train_only
from dsee.training.recipe_file import parse_recipe
from dsee.training.setting import Setting

UPDATE = {"r": 4, "target_modules": ["query", "value", "intermediate.dense"]}
ONE = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 32}
SHORT = {"tune": ONE, "recover": ONE, "export": {"onnx": []}}
# hidden 32, 3 layers, 40 neurons, 100 words, 80 positions, 2 classes
HEAD = 2 * 32 + 2
LAYER_BIASES = 4 * 32 + 40 + 32 + 2 * 32
COUNTS = {
    "full": (100 + 80 + 2) * 32 + 64 + 3 * (4 * 32 * 32 + 2 * 32 * 40 + LAYER_BIASES + 2 * 32) + 32 * 32 + 32 + HEAD,
    "lora": 3 * (4 * 2 * (32 + 32) + 4 * (32 + 40)) + HEAD,
    "bitfit": 32 + 3 * LAYER_BIASES + 32 + HEAD,
    "norms": 64 + 3 * 2 * 64 + HEAD,
}


def recipe_of(folder, model_folder, method, **changes):
    given = SHORT | {"method": method, "update": UPDATE} | changes
    path = prepare(folder, model_folder, **given)
    if method != "lora":
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        del content["update"]
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def through(folder, path, **kwargs):
    recorder = Recorder()
    result = run(load_recipe(path), base=folder, progress=recorder, **kwargs)
    return result, recorder


CUTS = {"heads": {"amount": 0.25, "score": "weight"}, "neurons": 0.4, "calibration": 32}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(COUNTS))
def test_a_method_goes_through_the_chain_and_resumes_to_the_same_bytes(tmp_path, model_folder, method):
    path = recipe_of(tmp_path, model_folder, method, prune=CUTS)
    result, _ = through(tmp_path, path)
    assert result.stages["tune"]["trainable"] == COUNTS[method]
    table = write_report(result, load_recipe(path), result.sizes)
    assert [row.name for row in table] == ["dense", "pruned", "recovered"]
    assert table[0].trainable_share == COUNTS[method] / result.stages["tune"]["parameters"]
    assert table == rows(result)
    assert "Tuned by" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    weights = tmp_path / "out" / "model" / "model.safetensors"
    model = dsee.load(tmp_path / "out" / "model")
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (24, 32)
    assert not hasattr(model, "peft_config")
    assert dsee.history(model)[0]["method"] == method
    good = sha256(weights)
    for name in ("recover", "merge"):
        (tmp_path / "out" / "stages" / f"{name}.json").unlink()
    _, recorder = through(tmp_path, path)
    assert recorder.ran == ["recover", "merge"]
    assert sha256(weights) == good


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
@pytest.mark.parametrize("score", ["weight", "random"])
def test_masks_of_magnitude_or_noise_hold_to_the_end(tmp_path, model_folder, method, score):
    prune = {"weights": {"ratio": 0.5, "score": score}}
    result, _ = through(tmp_path, recipe_of(tmp_path, model_folder, method, prune=prune))
    for stage in ("prune", "recover", "merge"):
        assert result.stages[stage]["zeros"] == pytest.approx(0.5, abs=1e-3), stage
    model = dsee.load(tmp_path / "out" / "model")
    weight = model.bert.encoder.layer[1].intermediate.dense.weight
    assert 0.2 < float((weight == 0).float().mean()) < 0.8


@pytest.mark.slow
def test_full_tuning_moves_the_weights_under_a_mask_and_not_the_zeros(tmp_path, model_folder):
    prune = {"weights": {"ratio": 0.5, "score": "weight"}}
    through(tmp_path, recipe_of(tmp_path, model_folder, "full", prune=prune))
    stages = tmp_path / "out" / "stages"
    before, after = (
        dsee.load(stages / name).bert.encoder.layer[0].output.dense.weight for name in ("pruned", "recovered")
    )
    assert torch.equal(before == 0, after == 0)
    assert not torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["weight", "movement"])
def test_full_tuning_reaches_a_mask_gradually(tmp_path, model_folder, score):
    prune = {"weights": {"ratio": 0.5, "score": score}, "schedule": {"law": "cubic", "end": 0.5, "every": 1}}
    path = recipe_of(tmp_path, model_folder, "full", prune=prune, recover=ONE | {"epochs": 2})
    result, _ = through(tmp_path, path)
    assert result.stages["merge"]["zeros"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_gates_with_full_tuning_choose_heads_and_neurons(tmp_path, model_folder):
    prune = {"heads": {"amount": 1, "score": "gate"}, "neurons": {"amount": 0.4, "score": "gate", "scope": "global"}}
    path = recipe_of(tmp_path, model_folder, "full", prune=prune, gates={"strength": 1e-3})
    result, _ = through(tmp_path, path)
    assert result.stages["tune"]["trainable"] == COUNTS["full"] + 3 * (4 + 40)
    assert [step["step"] for step in dsee.history(dsee.load(tmp_path / "out" / "model"))] == [
        "tune",
        "prune",
        "recover",
    ]
    assert result.stages["merge"]["test"] == result.stages["recover"]["test"]


def test_gates_without_pruning_are_folded(tmp_path, model_folder):
    path = recipe_of(tmp_path, model_folder, "bitfit", prune=None, gates=True)
    result, _ = through(tmp_path, path)
    steps = [step["step"] for step in dsee.history(dsee.load(tmp_path / "out" / "model"))]
    assert steps == ["tune", "fold_gates"]
    assert result.stages["merge"]["test"] == result.stages["tune"]["test"]


def test_a_lora_is_pefts_and_the_update_it_becomes_says_the_same(tmp_path, model_folder):
    from dsee.training.fit import torch_logits
    from dsee.training.methods import prepared, settled

    recipe = load_recipe(recipe_of(tmp_path, model_folder, "lora"))
    setting = Setting(recipe, tmp_path, tmp_path / "out")
    torch.manual_seed(0)
    model = prepared(recipe, setting.new_model(), None).eval()
    assert type(model.peft_config["default"]).__name__ == "LoraConfig"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ("classifier" in name and parameter.requires_grad):
                parameter.normal_(std=0.3)
    batch = {"input_ids": torch.randint(5, 20, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}
    before = torch_logits(model)(batch)
    found = settled(recipe, model)
    assert found.peft_config["default"].n_sparse == 0
    assert torch_logits(found)(batch) == pytest.approx(before, abs=1e-5)
    assert dsee.parameters(found).trainable == COUNTS["lora"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_biases_norms_and_head_of_every_family(name):
    model = FAMILIES[name]()
    train_only(model, "bitfit")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.endswith("bias") or not n.startswith(model.base_model_prefix) for n in trained)
    assert any("classifier" in n and n.endswith("weight") for n in trained)
    train_only(model, "norms")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    inside = {n for n in trained if n.startswith(model.base_model_prefix)}
    assert inside
    assert all("norm" in n.lower() for n in inside)
    train_only(model, "full")
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_without_biases_is_refused():
    model = torch.nn.Module()
    with pytest.raises(InputError, match="method: bitfit: a Module has no biases"):
        train_only(model, "bitfit")


def wrong(**content):
    with pytest.raises(InputError) as found:
        parse_recipe({"model": "m", "data": {"train": "t.csv"}} | content, "r.yaml")
    return str(found.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"method": "lorra"}, "method: Input should be 'dsee', 'full', 'lora', 'bitfit' or 'norms'"),
        ({"method": "full", "update": {"r": 4}}, "update: method full trains no update"),
        ({"method": "lora", "update": {"n_sparse": 64}}, "update.n_sparse: a LoRA has no S2"),
        ({"method": "lora", "update": {"support": "random"}}, "update.support: a LoRA has no S2"),
        ({"method": "lora", "update": {"masked": True}}, "update.masked: a LoRA has no S2"),
        ({"method": "lora", "update": {"r": 0}}, "update.r: a LoRA is nothing but"),
        ({"method": "lora", "gates": True}, "gates: are learned beside"),
        ({"method": "lora", "tune": {"up_ratio": 4}}, "tune.up_ratio: is for the parts of an update"),
        ({"method": "full", "recover": {"head_learning_rate": 1e-3}}, "recover.head_learning_rate: is for"),
        ({"method": "full", "prune": {"heads": 0.25}}, "prune.heads.score: 'update' ranks by the update"),
        ({"method": "bitfit", "prune": {"weights": {"ratio": 0.5, "score": "weight+update"}}}, "prune.weights.score"),
        ({"method": "norms", "prune": {"budget": {"flops": 0.5, "score": "update"}}}, "prune.budget.score"),
        ({"method": "full", "cache_prefix": True}, "cache_prefix: method full trains the lower layers"),
        (
            {"method": "full", "prune": {"weights": 0.5, "schedule": {"regrow": True}}},
            "prune.schedule.regrow: only weights of a frozen base",
        ),
    ],
)
def test_what_does_not_fit_the_method_is_refused_by_name(content, said):
    assert f"\n  {said}" in wrong(**content)


def test_all_that_does_not_fit_is_said_at_once():
    message = wrong(method="full", update={"r": 4}, tune={"up_ratio": 2}, prune={"heads": 2})
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "update",
        "tune.up_ratio",
        "prune.heads.score",
    ]


def test_targets_that_a_lora_does_not_find_are_refused_before_anything_runs(tmp_path, model_folder):
    path = recipe_of(tmp_path, model_folder, "lora", update=UPDATE | {"target_modules": ["qeury"]})
    with pytest.raises(InputError, match="method: lora: PEFT refuses"):
        preflight(Setting(load_recipe(path), tmp_path, tmp_path / "out"))


def test_dropout_of_the_base_is_not_the_loras(tmp_path, model_folder):
    from dsee.training.fit import set_dropout
    from dsee.training.methods import prepared

    recipe = load_recipe(recipe_of(tmp_path, model_folder, "lora", update=UPDATE | {"dropout": 0.25}))
    model = prepared(recipe, tiny_bert(), None)
    set_dropout(model, 0.0)
    rates = {n.split(".")[-2]: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates["lora_dropout"] == 0.25
    assert rates["output"] == 0.0
