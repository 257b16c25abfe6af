"""The update as a plain LoRA adapter: the same function, for PEFT without dsee."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import dsee
from conftest import FAMILIES, adapted, batch, logits, tiny_bert
from dsee.artifact.lora_factors import cover, lora_factors
from dsee.artifact.lora_names import pattern, target_names
from dsee.artifact.manifest import read_manifest
from dsee.errors import InputError, OrderError
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, dense_update, scrambled, tiny_gpt2, two_adapters

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def export(model, folder, **kwargs):
    """Export, and load what came out with PEFT onto a copy of the base."""
    return dsee.export_lora(model, folder / "lora", **kwargs)


def read_config(folder):
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def opened(base, folder):
    return PeftModel.from_pretrained(base, folder).eval()


def test_every_family_keeps_its_logits(family, tmp_path):
    model = scrambled(adapted(family(), support="random"))
    folder = export(model, tmp_path)
    assert not torch.allclose(logits(model), logits(family()), atol=1e-2)
    torch.testing.assert_close(logits(opened(family(), folder)), logits(model), **CLOSE)


@pytest.mark.parametrize("parts", [None, {}, {"c_attn": ["key"]}, {"c_attn": ["query", "key", "value"]}], ids=str)
def test_conv1d_keeps_its_logits(parts, tmp_path):
    model = scrambled(adapted_gpt2(fused_parts=parts))
    folder = export(model, tmp_path)
    assert read_config(folder)["fan_in_fan_out"] is True
    torch.testing.assert_close(logits(opened(tiny_gpt2(), folder)), logits(model), **CLOSE)


@pytest.mark.slow
def test_a_process_without_dsee_opens_it(tmp_path):
    save_file(batch(), tmp_path / "inputs.safetensors")
    arguments, expected = [tmp_path / "inputs.safetensors"], []
    for name, base, model in (
        ("BertForSequenceClassification", tiny_bert(), scrambled(adapted(tiny_bert()))),
        ("GPT2LMHeadModel", tiny_gpt2(), scrambled(adapted_gpt2())),
    ):
        base.save_pretrained(tmp_path / name)
        arguments += [name, tmp_path / name, dsee.export_lora(model, tmp_path / f"{name}-lora")]
        expected.append(logits(model))
    script = Path(__file__).parent / "lora_alone.py"
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for found, wanted in zip(json.loads(done.stdout.strip().splitlines()[-1]), expected, strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, **CLOSE)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0},
        {"n_sparse": 0},
        {"n_sparse": 700},
        {"r": 30, "n_sparse": 40},
        {"use_rslora": True, "alpha": 7.0},
        {"target_modules": ["query", "intermediate.dense"], "rank_pattern": {"layer.1.*query": 7}},
        {"layers_to_transform": [1]},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_every_kind_of_update_keeps_its_logits(config, tmp_path):
    model = scrambled(adapted(tiny_bert(), support="random", **config))
    folder = export(model, tmp_path)
    torch.testing.assert_close(logits(opened(tiny_bert(), folder)), logits(model), **CLOSE)
    uniform = dsee.export_lora(model, tmp_path / "uniform", uniform=True)
    assert read_config(uniform)["rank_pattern"] == {}
    torch.testing.assert_close(logits(opened(tiny_bert(), uniform)), logits(model), **CLOSE)


def test_bf16_updates_are_exported_in_their_dtype(tmp_path):
    base = tiny_bert()
    model = scrambled(adapted(base)).to(torch.bfloat16)
    folder = export(model, tmp_path)
    assert {v.dtype for v in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}
    again = opened(tiny_bert().to(torch.bfloat16), folder)
    torch.testing.assert_close(logits(again).float(), logits(model).float(), rtol=0, atol=0.1)


@pytest.mark.parametrize("bias", ["all", "dsee_only"])
def test_trained_biases_come_along(bias, tmp_path):
    model = adapted(tiny_bert(), bias=bias, rank_pattern={"layer.1.attention.self.query": 0}, n_sparse=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.add_(0.1)
    folder = export(model, tmp_path)
    again = opened(tiny_bert(), folder)
    expected = logits(model)
    assert not torch.allclose(expected, logits(adapted(tiny_bert(), n_sparse=0)), atol=1e-2)
    if bias == "all":
        torch.testing.assert_close(logits(again), expected, **CLOSE)
    else:
        stored = load_file(folder / "adapter_model.safetensors")
        assert sum(key.endswith("base_layer.bias") for key in stored) == 5


def test_the_ranks_are_the_smallest_possible(tmp_path):
    model = scrambled(adapted(tiny_bert(), support="random", r=3, n_sparse=20))
    folder = export(model, tmp_path)
    stored, config = load_file(folder / "adapter_model.safetensors"), read_config(folder)
    for path, layer in update_layers(model.get_base_model()):
        A, B = (stored[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        rank = int(torch.linalg.matrix_rank(dense_update(layer)))
        assert A.shape[0] == B.shape[1] == rank
        assert config["rank_pattern"].get(path, config["r"]) == config["alpha_pattern"].get(path, config["r"]) == rank
    assert config["lora_alpha"] == config["r"]


def test_zeros_in_s2_cost_no_rank(tmp_path):
    model = scrambled(adapted(tiny_bert(), r=2, n_sparse=9))
    for _, layer in update_layers(model):
        with torch.no_grad():
            layer.dsee_S["default"].weight[1:] = 0
    assert read_config(export(model, tmp_path))["r"] == 3


def test_the_chosen_adapter_is_exported(tmp_path):
    model = two_adapters(tiny_bert())
    model.set_adapter("second")
    expected = logits(model)
    torch.testing.assert_close(logits(opened(tiny_bert(), export(model, tmp_path))), expected, **CLOSE)
    model.set_adapter("default")
    named = dsee.export_lora(model, tmp_path / "named", "second")
    torch.testing.assert_close(logits(opened(tiny_bert(), named)), expected, **CLOSE)


def test_an_update_tuned_on_a_cut_base(tmp_path):
    model = scrambled(adapted(tiny_bert()))
    dsee.prune(model, dsee.Heads(0.25, score="random"), dsee.Neurons(0.4, score="random"))
    folder = export(model, tmp_path)
    assert "was cut" in (folder / "README.md").read_text(encoding="utf-8")
    base = tiny_bert()
    again = adapted(base)
    dsee.prune(again, dsee.Heads(0.25, score="random"), dsee.Neurons(0.4, score="random"))
    torch.testing.assert_close(logits(opened(again.unload(), folder)), logits(model), **CLOSE)


def test_the_same_update_gives_the_same_bytes(tmp_path):
    model = scrambled(adapted(tiny_bert()))
    one, two = (dsee.export_lora(model, tmp_path / name) for name in ("one", "two"))
    files = sorted(p.name for p in one.iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "dsee.json"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_the_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    from dsee.artifact import lora_export

    model = scrambled(adapted(tiny_bert()))
    folder = export(model, tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_export, "save_file", full)
    with pytest.raises(dsee.ArtifactError, match="no space is left"):
        export(scrambled(model, seed=9), tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


def test_other_folders_are_left_alone(tmp_path):
    model = scrambled(adapted(tiny_bert()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(dsee.ArtifactError, match="not written by dsee"):
        dsee.export_lora(model, tmp_path / "mine")
    dsee.save(model, tmp_path / "artifact")
    with pytest.raises(InputError, match="kind 'adapted'"):
        dsee.export_lora(model, tmp_path / "artifact")
    export(model, tmp_path)
    with pytest.raises(InputError, match="kind 'lora'"):
        dsee.save(model, tmp_path / "lora")


def test_dsee_load_says_what_the_folder_is(tmp_path):
    folder = export(scrambled(adapted(tiny_bert())), tmp_path)
    assert read_manifest(folder).kind == "lora"
    with pytest.raises(InputError, match=r"dsee.import_lora\(base, folder\)"):
        dsee.load(folder)


def lora_model():
    return get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))


def both_active():
    model = two_adapters(tiny_gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn"])
    model.base_model.set_adapter(["default", "second"])
    return model


def nothing_yet():
    return adapted(tiny_bert(), r=0, init_weights=True)


@pytest.mark.parametrize(
    ("build", "adapter", "error", "expected"),
    [
        (tiny_bert, None, InputError, "carries no update"),
        (lora_model, None, InputError, "is a PeftType.LORA, not an update of dsee|is a LORA, not an update of dsee"),
        (lambda: adapted(tiny_bert()), "defualt", InputError, "no adapter 'defualt'. Did you mean 'default'"),
        (both_active, None, InputError, "default, second are active"),
        (nothing_yet, None, OrderError, "is zero everywhere"),
    ],
)
def test_what_cannot_be_exported_is_refused(build, adapter, error, expected, tmp_path):
    with pytest.raises(error, match=expected):
        dsee.export_lora(build(), tmp_path / "lora", adapter)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), unique=True, max_size=30), st.integers(0, 5))
def test_the_cover_holds_all_entries_and_is_as_small_as_the_rank(entries, seed):
    row, column = [r for r, _ in entries], [c for _, c in entries]
    rows, columns = cover(row, column)
    assert all(r in rows or c in columns for r, c in entries)
    matrix = torch.zeros(8, 7, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    for r, c in entries:
        matrix[r, c] = torch.randn((), generator=draw, dtype=torch.float64)
    assert len(rows) + len(columns) == int(torch.linalg.matrix_rank(matrix))


@settings(max_examples=25, deadline=None)
@given(r=st.integers(0, 9), n_sparse=st.integers(0, 200), seed=st.integers(0, 99))
def test_the_product_is_the_update(r, n_sparse, seed):
    if r == n_sparse == 0:
        r = 1
    model = adapted(tiny_bert(num_hidden_layers=1), r=r, n_sparse=n_sparse, support="random")
    for _, layer in update_layers(scrambled(model, seed=seed)):
        B, A = lora_factors(layer, "default")
        assert A.shape[0] <= min(32, r + n_sparse)
        torch.testing.assert_close(B.double() @ A.double(), dense_update(layer), rtol=0, atol=1e-5)


def test_target_names_match_the_given_modules_and_no_others():
    base = tiny_bert()
    stack = "bert.encoder.layer"
    queries = [f"{stack}.{i}.attention.self.query" for i in range(3)]
    assert target_names(queries, base) == ["query"]
    assert target_names(queries[:2], base) == queries[:2]
    twins = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"b": torch.nn.Linear(2, 2)}), "b": torch.nn.Linear(2, 2)})
    assert target_names(["b"], twins) == "b"
    assert target_names(["a.b"], twins) == ["a.b"]
    assert pattern({"b": 3, "a.b": 2}, 2) == {"^b": 3}
    assert pattern({"b": 2, "a.b": 3}, 2) == {"a.b": 3}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_our_own_file_is_as_small_as_promised(name, tmp_path):
    """r (in + out) + N values and N indices, the names of the parts, and the head."""
    model = adapted(FAMILIES[name](), r=3, n_sparse=50)
    model.save_pretrained(tmp_path)
    update = matrices = 0
    for _, layer in update_layers(model):
        out_features, in_features = layer.base_weight().shape
        update += 4 * (3 * (in_features + out_features) + 50) + 4 * 50
        matrices += 1
    head = sum(4 * p.numel() for n, p in model.named_parameters() if "modules_to_save" in n)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= update + head + 4096 + 1024 * matrices
