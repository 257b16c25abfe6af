"""An update that starts as a LoRA adapter: the same function, and room to learn S2."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import dsee
from conftest import adapted, batch, logits, tiny_bert, tiny_distilbert
from dsee.architectures import default_targets
from dsee.errors import ArtifactError, InputError
from dsee.update.layer import update_layers
from update.models import own, scrambled, tiny_gpt2, train_step

CLOSE = {"rtol": 0.0, "atol": 1e-5}
QV = ["query", "value"]


def lora(base, folder, **config):
    """A LoRA with random matrices and a changed head, saved; the model it is."""
    settings = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 12, "target_modules": QV} | config
    model = get_peft_model(base, LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def imported(base, folder, **config):
    return dsee.import_lora(base, folder, **({"n_sparse": 5, "support": "random"} | config)).eval()


def test_every_family_starts_where_the_lora_was(family, tmp_path):
    targets = default_targets()[family().config.model_type]
    expected = logits(lora(family(), tmp_path, target_modules=targets))
    model = imported(family(), tmp_path)
    assert not torch.allclose(expected, logits(family()), atol=1e-2)
    torch.testing.assert_close(logits(model), expected, **CLOSE)


def test_conv1d_starts_where_the_lora_was(tmp_path):
    expected = logits(
        lora(tiny_gpt2(), tmp_path, task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    )
    torch.testing.assert_close(logits(imported(tiny_gpt2(), tmp_path)), expected, **CLOSE)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"layer.1.*query": 7}, "alpha_pattern": {"layer.2.*value": 5}},
        {"rank_pattern": {"query": 2}},
        {"layers_to_transform": [1]},
        {"lora_dropout": 0.1},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["pooler"]},
        {"init_lora_weights": "gaussian"},
        {"exclude_modules": ["bert.encoder.layer.0.attention.self.query"]},
    ],
    ids=str,
)
def test_every_plain_lora_is_represented(config, tmp_path):
    expected = logits(lora(tiny_bert(), tmp_path, **config))
    torch.testing.assert_close(logits(imported(tiny_bert(), tmp_path)), expected, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alphas=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rslora=st.booleans(),
)
def test_ranks_and_scales_are_taken_over(ranks, alphas, rslora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    patterns = {"rank_pattern": {"query": ranks[1]}, "alpha_pattern": {"query": alphas[1]}}
    theirs = lora(tiny_bert(), folder, r=ranks[0], lora_alpha=alphas[0], use_rslora=rslora, **patterns)
    model = imported(tiny_bert(), folder)
    scales = {n: m.scaling["default"] for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert {n: layer.dsee_scaling["default"] for n, layer in update_layers(model)} == pytest.approx(scales)
    torch.testing.assert_close(logits(model), logits(theirs), **CLOSE)


def test_s2_starts_at_zero_and_learns(tmp_path):
    lora(tiny_bert(), tmp_path)
    model = imported(tiny_bert(), tmp_path, n_sparse=11, support="magnitude", seed=4)
    for _, layer in update_layers(model):
        sparse = layer.dsee_S["default"]
        assert sparse.n_sparse == 11
        assert not sparse.weight.any()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == own(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_step(model.train())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained


def test_exported_and_imported_again(tmp_path):
    model = scrambled(adapted(tiny_bert()))
    again = imported(tiny_bert(), dsee.export_lora(model, tmp_path / "lora"))
    torch.testing.assert_close(logits(again), logits(model), **CLOSE)
    again.save_pretrained(tmp_path / "dsee")
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "dsee").eval()
    assert torch.equal(logits(loaded), logits(again))


def test_the_adapter_gets_its_name(tmp_path):
    lora(tiny_bert(), tmp_path)
    model = imported(tiny_bert(), tmp_path, adapter_name="mine")
    assert list(model.peft_config) == ["mine"]
    assert model.peft_config["mine"].n_sparse == 5


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"use_dora": True}, "use_dora=True makes this more than a plain LoRA"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=str,
)
def test_what_an_update_cannot_hold_is_refused_by_name(config, expected, tmp_path, recwarn):
    lora(tiny_bert(), tmp_path, **config)
    with pytest.raises(InputError, match=expected):
        imported(tiny_bert(), tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"peft_type": "IA3"}, "holds a IA3 adapter; only LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"some_new_thing": 3}, "some_new_thing=3 makes this more"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base"),
        ({"lora_alpha": -3}, "lora_alpha=-3.0; an update's scale is positive"),
    ],
    ids=str,
)
def test_fields_an_update_cannot_hold_are_refused_by_name(fields, expected, tmp_path):
    lora(tiny_bert(), tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(InputError, match=expected):
        imported(tiny_bert(), tmp_path)


def test_another_method_is_refused(tmp_path):
    config = IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    get_peft_model(tiny_bert(), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a IA3 adapter"):
        imported(tiny_bert(), tmp_path)


def test_another_base_is_refused(tmp_path):
    lora(tiny_bert(), tmp_path)
    with pytest.raises(InputError, match="which this DistilBertForSequenceClassification does not have"):
        imported(tiny_distilbert(), tmp_path)
    with pytest.raises(ArtifactError, match="do not make a 48 x 48 matrix"):
        imported(tiny_bert(hidden_size=48), tmp_path)
    with pytest.raises(ArtifactError, match=r"classifier\.\w+ is .* the base's is"):
        imported(tiny_bert(num_labels=5), tmp_path)


def test_a_layer_that_is_no_linear_is_refused(tmp_path):
    lora(tiny_bert(), tmp_path)
    base = tiny_bert()
    base.bert.encoder.layer[0].attention.self.query = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(InputError, match=r"layer\.0\.attention\.self\.query, a Bilinear"):
        imported(base, tmp_path)


def cut_short(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_header(folder):
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[12] ^= 0xFF
    path.write_bytes(bytes(content))


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def pickled_only(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_config(folder):
    (folder / "adapter_config.json").unlink()


def broken_config(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LO', encoding="utf-8")


def list_config(folder):
    (folder / "adapter_config.json").write_text("[]", encoding="utf-8")


def half_a_pair(folder):
    rewrite(folder, lambda state: state.pop(next(k for k in state if "lora_A" in k)))


def not_a_number(folder):
    rewrite(folder, lambda state: next(v for k, v in state.items() if "lora_B" in k).fill_(float("nan")))


def foreign_names(folder):
    rewrite(folder, lambda state: state.update({"query.lora_A.weight": torch.ones(1)}))


def no_pairs(folder):
    rewrite(folder, lambda state: [state.pop(k) for k in list(state) if "lora_" in k])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut_short, "adapter_model.safetensors could not be read"),
        (flip_header, "adapter_model.safetensors could not be read"),
        (no_weights, "has no adapter_model.safetensors. Copy it again"),
        (pickled_only, "would have to be unpickled"),
        (no_config, "has no adapter_config.json"),
        (broken_config, "adapter_config.json could not be read"),
        (list_config, "has no peft_type"),
        (half_a_pair, "half of the pair is missing"),
        (not_a_number, "NaN or infinite"),
        (foreign_names, "is not named as PEFT names"),
        (no_pairs, "holds no LoRA matrices"),
        (lambda folder: edit(folder, r=3), "has rank 4 in .* and 3 in"),
        (lambda folder: edit(folder, lora_alpha="big"), "no usable r, lora_alpha"),
        (lambda folder: edit(folder, modules_to_save=["classifier", "pooler"]), "pooler"),
    ],
)
def test_a_damaged_folder_is_an_artifact_error(damage, expected, tmp_path):
    lora(tiny_bert(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=expected):
        imported(tiny_bert(), tmp_path)


def test_a_flipped_bit_in_an_export_is_found(tmp_path):
    folder = dsee.export_lora(scrambled(adapted(tiny_bert())), tmp_path / "lora")
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        imported(tiny_bert(), folder)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"r": 3}, "r: the LoRA decides that"),
        ({"target_modules": ["key"], "alpha": 2}, "alpha, target_modules: the LoRA decides that"),
        ({"n_spars": 3}, "has no field 'n_spars'. Did you mean 'n_sparse'"),
    ],
    ids=str,
)
def test_fields_the_lora_decides_are_refused(config, expected, tmp_path):
    lora(tiny_bert(), tmp_path)
    with pytest.raises(InputError, match=expected):
        imported(tiny_bert(), tmp_path, **config)


def test_bases_that_are_none_are_refused(tmp_path):
    lora(tiny_bert(), tmp_path)
    with pytest.raises(InputError, match="carries an adapter already"):
        imported(adapted(tiny_bert()), tmp_path)
    with pytest.raises(InputError, match="a Linear is not a transformers model"):
        imported(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(ArtifactError, match="there is no such folder"):
        imported(tiny_bert(), tmp_path / "nowhere")


def test_the_refused_base_stays_as_it_was(tmp_path):
    lora(tiny_bert(), tmp_path)
    edit(tmp_path, r=3)
    base = tiny_bert()
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ArtifactError):
        imported(base, tmp_path)
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits(base), logits(tiny_bert(), batch()))
