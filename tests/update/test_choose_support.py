"""Choosing the support of an update that is already on its model."""

import copy
import json

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model

import dsee
from conftest import adapted, batch, logits, save_pretrained_bert, tiny_bert
from dsee import support
from dsee.masks import set_mask
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, tiny_gpt2, train_step, two_adapters

BATCHES = [batch(labels=True, seed=seed) for seed in range(3)]
QUERY = "bert.encoder.layer.0.attention.self.query"


def fresh(base=tiny_bert, **config):
    return adapted(base(), **({"init_weights": True} | config))


def positions(model, adapter="default"):
    return {name: layer.dsee_S[adapter].indices.tolist() for name, layer in update_layers(model)}


def short(name):
    return name.removeprefix("base_model.model.")


@pytest.mark.parametrize("rule", sorted(set(support.rules()) - {"gradient"}))
def test_a_rule_chosen_afterwards_gives_what_the_configuration_would_have(rule):
    model, expected = fresh(support="random", seed=3), fresh(support=rule, seed=5)
    found = dsee.choose_support(model, rule, seed=5)
    assert positions(model) == positions(expected)
    assert {name: flat.tolist() for name, flat in found.items()} == {
        short(name): flat for name, flat in positions(model).items()
    }
    config = model.peft_config["default"]
    assert (config.support, config.seed) == (rule, 5)


def test_the_model_computes_what_it_did_and_keeps_its_parameters():
    model = fresh()
    before = logits(model)
    parameters = dict(model.named_parameters())
    dsee.choose_support(model, "random", seed=9)
    assert torch.equal(logits(model), before)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("form", ["flat", "pairs"])
def test_positions_by_hand_are_taken_for_the_module_that_is_named(form):
    model = fresh(n_sparse=3)
    before = positions(model)
    given = [40, 0, 1023] if form == "flat" else [(1, 8), (0, 0), (31, 31)]
    dsee.choose_support(model, positions={QUERY: given})
    after = positions(model)
    assert after.pop(f"base_model.model.{QUERY}") == [0, 40, 1023]
    assert all(after[name] == before[name] for name in after)


def test_another_number_of_positions_survives_both_loaders(tmp_path):
    model = fresh(n_sparse=3, task_type=None)
    dsee.choose_support(model, positions={QUERY: [5, 6, 7, 8, 9]})
    for _, layer in update_layers(model):
        layer.dsee_S["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))
    other = tiny_bert()
    other.load_adapter(str(tmp_path))
    assert torch.equal(logits(other.eval()), logits(model))


def test_a_pattern_gives_several_matrices_the_same_positions():
    model = fresh(n_sparse=3)
    dsee.choose_support(model, positions={"query": [1, 2, 3], "value": torch.tensor([[0, 4], [0, 5], [0, 6]])})
    assert sorted(positions(model).values()) == [[1, 2, 3]] * 3 + [[4, 5, 6]] * 3
    assert model.peft_config["default"].support == "explicit"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer.0.attention.self.quary": [1]}, "is called 'layer.0.attention.self.quary'. Did you mean 'bert"),
        ({"output.dense": [1]}, "no module with an update is called 'output.dense'"),
        ({"query(": [1]}, "neither a name nor a regular expression"),
        ({QUERY: [0, 1024]}, f"{QUERY}: 1024 lies outside the 32 x 32"),
        ({QUERY: [1, 1]}, f"{QUERY}: position 1 .* twice"),
        ({QUERY: []}, f"{QUERY} are empty"),
    ],
)
def test_wrong_positions_are_refused_and_nothing_changes(given, said):
    model = fresh(n_sparse=3)
    before = positions(model)
    with pytest.raises(dsee.InputError, match=said):
        dsee.choose_support(model, positions={"value": [1, 2]} | given)
    assert positions(model) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rule": "magnitud"}, "Did you mean 'magnitude'"),
        ({"rule": "gradient"}, "give labelled batches"),
        ({"rule": "gradient", "calibration": []}, "calibration set is empty"),
        ({"rule": "gradient", "calibration": BATCHES[0]}, r"calibration=\[batch\]"),
        ({"rule": "gradient", "calibration": [batch()]}, "have no labels"),
        ({"calibration": BATCHES}, "'grebsmo' has no use for a calibration set.*rule='gradient'"),
        ({"rule": "explicit"}, "needs positions="),
        ({"rule": "magnitude", "positions": {QUERY: [1]}}, "neither rule nor calibration"),
        ({"calibration": BATCHES, "positions": {QUERY: [1]}}, "neither rule nor calibration"),
        ({"adapter": "defualt"}, "no adapter 'defualt'. Did you mean 'default'"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_changes(arguments, said):
    model = fresh()
    before = positions(model), copy.deepcopy(model.peft_config["default"].to_dict())
    with pytest.raises(dsee.InputError, match=said):
        dsee.choose_support(model, **arguments)
    assert (positions(model), model.peft_config["default"].to_dict()) == before


def test_models_without_a_sparse_part_are_refused():
    with pytest.raises(dsee.InputError, match="carries no update"):
        dsee.choose_support(tiny_bert(), "magnitude")
    with pytest.raises(dsee.InputError, match="no sparse part"):
        dsee.choose_support(fresh(n_sparse=0), "magnitude")


def test_a_trained_s2_is_not_thrown_away():
    model = fresh()
    train_step(model)
    train_step(model, seed=1)
    for arguments in ({"rule": "magnitude"}, {"positions": {"query": [1]}}):
        with pytest.raises(dsee.OrderError, match="has been trained"):
            dsee.choose_support(model, **arguments)


def test_a_merged_update_is_refused():
    model = fresh()
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="unmerge_adapter"):
        dsee.choose_support(model, "magnitude")


def test_one_adapter_of_two_is_chosen_for():
    model = two_adapters(tiny_bert(), n_sparse=5)
    for _, layer in update_layers(model):
        layer.dsee_S["second"].weight.data.zero_()
    before = positions(model, "default")
    dsee.choose_support(model, "magnitude", adapter="second")
    assert positions(model, "default") == before
    expected = fresh(support="magnitude", n_sparse=5)
    assert positions(model, "second") == positions(expected)


def test_explicit_positions_in_the_configuration_survive_json(tmp_path):
    given = {"layer.0.attention.self.query": torch.tensor([3, 1]), "layer.2.attention.self.value": ((0, 1), (31, 0))}
    config = dsee.DseeConfig(task_type="SEQ_CLS", r=2, support="explicit", positions=given)
    again = dsee.DseeConfig(**{k: v for k, v in json.loads(json.dumps(config.to_dict())).items() if k != "peft_type"})
    model = get_peft_model(tiny_bert(), again).eval()
    assert {
        short(n): layer.dsee_S["default"].indices.tolist() for n, layer in update_layers(model) if layer.dsee_S
    } == {
        QUERY: [1, 3],
        "bert.encoder.layer.2.attention.self.value": [1, 992],
    }
    assert torch.equal(logits(model), logits(tiny_bert())), "the start is the base"
    for _, layer in update_layers(model):
        for sparse in layer.dsee_S.values():
            sparse.weight.data.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))
    other = tiny_bert()
    other.load_adapter(str(tmp_path))
    assert {name: len(layer.dsee_S) for name, layer in update_layers(other)} == {
        short(name): len(layer.dsee_S) for name, layer in update_layers(model)
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [({"quary": [1]}, "Did you mean|is called 'quary'"), ({"query": [1024]}, "layer.0.*1024 lies outside")],
)
def test_wrong_positions_in_the_configuration_are_refused(given, said):
    with pytest.raises(dsee.InputError, match=said):
        fresh(support="explicit", positions=given)


def test_explicit_without_positions_waits_for_them():
    model = fresh(support="explicit", n_sparse=4)
    with pytest.raises(dsee.DseeError, match=r"choose_support\(model, positions="):
        logits(model)
    dsee.choose_support(model, positions={"query": [1, 2, 3, 4]})
    with pytest.raises(dsee.DseeError, match="not been chosen"):
        logits(model)
    dsee.choose_support(model, positions={"value": [1]})
    assert torch.equal(logits(model), logits(tiny_bert()))


def sparse_base(mask_buffer):
    """A BERT whose queries and values are half zeros; with a buffer, some of the kept weights are zero as well."""
    base, masks = tiny_bert(), {}
    for name, module in base.named_modules():
        if name.endswith(("query", "value")):
            kept = torch.rand(32, 32, generator=torch.Generator().manual_seed(len(masks))) < 0.5
            if mask_buffer:
                set_mask(module, kept)
                module.weight.data[3] = 0.0
            else:
                module.weight.data.mul_(kept)
            masks[name] = kept
    return base, masks


@pytest.mark.parametrize("mask_buffer", [True, False])
@pytest.mark.parametrize("rule", sorted(set(support.rules()) - {"gradient"}))
def test_within_mask_keeps_to_the_kept_weights(rule, mask_buffer):
    base, masks = sparse_base(mask_buffer)
    model = adapted(base, support=rule, within_mask=True, init_weights=True, n_sparse=200)
    for name, flat in positions(model).items():
        assert masks[short(name)].reshape(-1)[flat].all()
    dsee.choose_support(model, "random", seed=7, within_mask=False)
    assert any(not masks[short(name)].reshape(-1)[flat].all() for name, flat in positions(model).items())


def test_a_kept_zero_may_be_chosen_where_there_is_a_mask():
    base, _ = sparse_base(True)
    model = adapted(base, support="random", within_mask=True, init_weights=True, n_sparse=400)
    flat = torch.tensor(positions(model)[f"base_model.model.{QUERY}"])
    assert bool((flat // 32 == 3).any()), "row 3 is zero, and partly kept"


def test_a_mask_that_keeps_too_few_is_refused_with_the_layer_s_name():
    base, _ = sparse_base(False)
    with pytest.raises(dsee.InputError, match=rf"{QUERY}: n_sparse=900 is more than the 5\d\d weights that the mask"):
        adapted(base, within_mask=True, n_sparse=900)


def test_conv1d_masks_and_positions_are_in_out_in_orientation():
    base = tiny_gpt2()
    target = base.transformer.h[0].attn.c_attn
    kept = torch.zeros(96, 32, dtype=torch.bool)
    kept[70] = True
    set_mask(target, kept)
    model = adapted(
        base,
        task_type="CAUSAL_LM",
        target_modules=["h.0.attn.c_attn"],
        within_mask=True,
        n_sparse=10,
        fused_parts={},
        support="residual",
    )
    assert all(flat // 32 == 70 for flat in next(iter(positions(model).values())))
    model = adapted_gpt2(n_sparse=2, init_weights=True)
    dsee.choose_support(model, positions={"c_attn": [(95, 31), (0, 1)]})
    assert next(iter(positions(model).values())) == [1, 95 * 32 + 31]


def test_nothing_is_chosen_again_at_load(tmp_path, monkeypatch):
    folder = save_pretrained_bert(tmp_path / "base", steps=1)
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(folder)
    model = get_peft_model(base, dsee.DseeConfig(task_type="SEQ_CLS", support="gradient", n_sparse=6, r=2))
    dsee.choose_support(model, calibration=[{**BATCHES[0], "labels": BATCHES[0]["labels"] % 2}])
    model.save_pretrained(tmp_path / "adapter")

    def never(*_, **__):
        raise AssertionError("a stored support was searched again")

    monkeypatch.setattr(support, "choose", never)
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    native = AutoModelForSequenceClassification.from_pretrained(folder)
    native.load_adapter(str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder), tmp_path / "adapter")
    for other in (loaded, native, plain):
        assert {short(n): flat for n, flat in positions(other).items()} == {
            short(n): flat for n, flat in positions(model).items()
        }


def fused_gpt2(**config):
    """Query and value of the fused projection, 32 outputs each of 96."""
    return adapted_gpt2(fused_parts={"c_attn": ["query", "value"]}, init_weights=True, **config)


def owners(flat):
    return [position // 32 // 32 for position in flat]


@pytest.mark.parametrize("rule", ["residual", "random"])
def test_each_part_of_a_fused_layer_gets_its_own_support(rule):
    model, expected = fused_gpt2(n_sparse=4), fused_gpt2(n_sparse=4, support=rule, seed=2)
    dsee.choose_support(model, rule, seed=2)
    assert positions(model) == positions(expected)
    assert all(owners(flat) == [0] * 4 + [2] * 4 for flat in positions(model).values())


def test_gradients_of_a_fused_layer_are_split_among_its_parts():
    model = fused_gpt2(n_sparse=4, support="gradient")
    dsee.choose_support(model, calibration=[{**one, "labels": one["input_ids"]} for one in (batch(),)])
    assert all(owners(flat) == [0] * 4 + [2] * 4 for flat in positions(model).values())


def test_positions_of_a_fused_layer_stay_in_its_parts_and_load(tmp_path):
    model = fused_gpt2(n_sparse=4)
    with pytest.raises(dsee.InputError, match=r"c_attn: some lie outside the parts .*query, value"):
        dsee.choose_support(model, positions={"c_attn": [(0, 1), (40, 2)]})
    dsee.choose_support(model, positions={"c_attn": [(0, 1), (64, 2), (95, 31)]})
    for _, layer in update_layers(model):
        layer.dsee_S["default"].weight.data.normal_()
    model.save_pretrained(tmp_path)
    other = tiny_gpt2()
    other.load_adapter(str(tmp_path))
    assert torch.equal(logits(other.eval()), logits(model))


def test_positions_of_a_fused_layer_in_the_configuration():
    model = fused_gpt2(support="explicit", positions={"h.0.attn.c_attn": [(0, 1), (64, 2), (95, 31)]})
    assert model.peft_config["default"].n_sparse_pattern == {
        "transformer.h.0.attn.c_attn": [1, 2],
        "transformer.h.1.attn.c_attn": [0, 0],
    }
    assert torch.equal(logits(model), logits(tiny_gpt2()))
