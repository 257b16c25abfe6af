"""Maps of fused, shared and gated parts, of two stacks, and of parts a model may lack."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import T5EncoderModel

import dsee
import dsee.architectures
from conftest import adapted
from cut_families import CONFIGS, DECODERS, HEADED, LINEARS, NAMES, T5S, build, task_type
from dsee.architectures import layers, structure
from dsee.update.layer import update_layers

GROUPED = ("llama", "llama with biases", "qwen2", "qwen3", "mistral")


@pytest.mark.parametrize("name", NAMES)
def test_structure_bare_updated_and_without_a_head(name):
    expected = {"heads": [4, 4, 4], "neurons": [40, 40, 40]}
    model = build(name)
    assert structure(model) == structure(model.base_model) == expected
    assert structure(adapted(model, target_modules=LINEARS, task_type=task_type(name))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_has_the_shape_of_its_role(name):
    wide = 64 if name in GROUPED else 32
    shapes = {"query": (wide, 32), "key": (32, 32), "value": (32, 32), "output": (32, wide)}
    shapes |= {"ffn_in": (40, 32), "ffn_out": (32, 40)}
    for view in layers(build(name)):
        assert view.head_size == 8
        assert view.queries_per_head == (2 if name in GROUPED else 1)
        for part, shape in shapes.items():
            assert view.matrix(part).shape == shape, part
        gated = name in GROUPED or name == "t5 gated"
        assert view.names("neurons") == (("ffn_in", "gate") if gated else ("ffn_in",))
        assert view.matrix(view.names("neurons")[-1]).shape == (40, 32)


def test_a_fused_projection_is_seen_in_its_three_parts():
    model = build("gpt2")
    first = layers(model)[0]
    whole = model.transformer.h[0].attn.c_attn.weight.T
    parts = [first.matrix(part) for part in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), whole)
    assert [first.rows(part).start for part in ("query", "key", "value")] == [0, 32, 64]
    assert list(first.linears("heads")) == ["query", "output"]
    # it is a view: what is written there is written into the model
    parts[1].zero_()
    assert not whole[32:64].any()
    assert whole[:32].any()


def test_a_matrix_is_the_bases_under_an_update():
    model = build("gpt2")
    expected = [view.matrix("value").clone() for view in layers(model)]
    updated = adapted(model, target_modules=["c_attn"], task_type="CAUSAL_LM")
    assert all(torch.equal(view.matrix("value"), e) for view, e in zip(layers(updated), expected, strict=True))


def test_relative_positions_may_have_projections_of_their_own():
    shared, own = (layers(build(name))[0] for name in ("deberta-v3", "deberta-v2"))
    assert shared.further() == {}
    assert [path.rpartition(".")[2] for path in own.further()] == ["pos_key_proj", "pos_query_proj"]
    assert len(own.linears("heads")) == 6


def test_the_encoder_of_t5_alone_has_its_layers():
    model = T5EncoderModel(CONFIGS["t5"]())
    assert structure(model) == {"heads": [4, 4], "neurons": [40, 40]}
    views = layers(build("t5"))
    assert [len(view.crossing()) for view in views] == [0, 0, 4]
    assert views[2].crossing()[1] is views[2].module.layer[1].EncDecAttention.k


DEFAULTS = {key: {"q_proj", "v_proj"} for key in DECODERS} | {key: {"q", "v"} for key in T5S} | {"gpt2": {"c_attn"}}
DEFAULTS |= {key: {"query_proj", "value_proj"} for key in ("deberta-v2", "deberta-v3")}


@pytest.mark.parametrize("name", NAMES)
def test_by_default_query_and_value_are_tuned(name):
    model = get_peft_model(build(name), dsee.DseeConfig(task_type=task_type(name), r=2, n_sparse=2, support="random"))
    assert {key.rpartition(".")[2] for key, _ in update_layers(model)} == DEFAULTS[name]


@pytest.mark.parametrize("name", HEADED)
def test_a_cut_model_keeps_its_default_targets(name, tmp_path):
    model = build(name)
    dsee.prune(model, dsee.Heads(1, score="weight"))
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    config = dsee.DseeConfig(task_type=task_type(name), r=2, n_sparse=2, support="random")
    names = {key.rpartition(".")[2] for key, _ in update_layers(get_peft_model(loaded, config))}
    assert names == DEFAULTS[name]


def test_a_map_is_40_lines_at_most():
    files = [path for path in Path(dsee.architectures.__file__).parent.glob("*.py") if not path.name.startswith("_")]
    assert len(files) >= 8
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 40 for path in files)
