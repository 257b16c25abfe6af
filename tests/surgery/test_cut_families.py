"""Cut equals mask for every other family: fused projections, shared keys and values, gated neurons, two stacks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracle import TOLERANCE, UNEVEN, strong, zeroed
from peft import PeftModel

from cut_families import DECODERS, ENCODERS, HEADED, LINEARS, NAMES, T5S, answer, build, inputs, task_type
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut

BOTH = dict.fromkeys(HEADED, UNEVEN)
#: One stack of the encoder's layers and the decoder's after them.
PLANS = BOTH | {name: [LayerPlan(neurons=layer.neurons) for layer in UNEVEN] for name in T5S}
ATTENTION = {name: ("eager",) if name in ENCODERS else ("eager", "sdpa") for name in NAMES}


def updated(name, seed=0):
    return strong(build(name, seed), target_modules=LINEARS, task_type=task_type(name), n_sparse=30)


def updated_in_one(name, seed=0):
    """One update over query, key and value together, where these share a matrix."""
    return strong(build(name, seed), target_modules=LINEARS, task_type=task_type(name), n_sparse=30, fused_parts={})


def equal(model, masked, name, dtype=torch.float32, given=None):
    expected = answer(masked, name, given)
    assert expected.dtype == dtype
    torch.testing.assert_close(answer(model, name, given), expected, rtol=0.0, atol=TOLERANCE[dtype])


CASES = [
    (name, make, attention, dtype)
    for name in NAMES
    for attention in ATTENTION[name]
    for make, dtype in ((build, torch.float32), (build, torch.float64), (updated, torch.float64))
] + [("gpt2", updated_in_one, "sdpa", torch.float64)]


@pytest.mark.parametrize(
    ("name", "make", "attention", "dtype"), CASES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_cut_equals_mask(name, make, attention, dtype):
    model = make(name)
    model.set_attn_implementation(attention)
    model = model.to(dtype)
    plan = PLANS[name]
    masked = zeroed(model, plan)
    assert (answer(model, name) - answer(masked, name)).abs().max() > 1e-2
    cut(model, plan)
    heads = [2, 4, 1] if name in HEADED else [4, 4, 4]
    assert structure(model) == {"heads": heads, "neurons": [36, 1, 40]}
    equal(model, masked, name, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_cut_equals_mask_without_an_attention_mask(name):
    model = build(name)
    masked = zeroed(model, PLANS[name])
    cut(model, PLANS[name])
    with torch.no_grad():
        given = {key: value for key, value in inputs(name, 2, 17).items() if key != "attention_mask"}
        torch.testing.assert_close(model(**given).logits, masked(**given).logits, rtol=0.0, atol=1e-5)


LAYERS = st.builds(
    LayerPlan,
    heads=st.sets(st.integers(0, 3), max_size=3).map(lambda chosen: tuple(sorted(chosen))),
    neurons=st.sets(st.integers(0, 39), max_size=39).map(lambda chosen: tuple(sorted(chosen))),
)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(NAMES), plan=st.lists(LAYERS, min_size=3, max_size=3), seed=st.integers(0, 100))
def test_any_plan(name, plan, seed):
    model = updated(name, seed).double()
    plan = plan if name in HEADED else [LayerPlan(neurons=layer.neurons) for layer in plan]
    masked = zeroed(model, plan)
    cut(model, plan)
    equal(model, masked, name, torch.float64)


@pytest.mark.parametrize("name", [*DECODERS, *T5S])
def test_generation_with_a_cache_equals_the_masked_models(name):
    model = build(name)
    masked = zeroed(model, PLANS[name])
    cut(model, PLANS[name])
    expected = generated(masked, name)
    assert generated(model, name).equal(expected)
    assert generated(model, name, cache_implementation="static").equal(expected)
    assert not generated(model, name).equal(generated(build(name), name))


def generated(model, name, **more):
    given = {key: value for key, value in inputs(name, 3, 8).items() if key in ("input_ids", "attention_mask")}
    if name not in T5S:
        # what a decoder writes follows on the last token: padding comes first
        given = {key: value.flip(1) for key, value in given.items()}
    sizes = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "use_cache": True}
    return model.generate(**given, **sizes, **more)


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_learns_as_beside_the_zeroed_parts(name):
    model = updated(name).double()
    masked = zeroed(model, PLANS[name])
    cut(model, PLANS[name])
    losses = [each(**inputs(name, labels=True)).loss for each in (model, masked)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    pairs = [
        (own.grad, other.grad)
        for (key, own), other in zip(model.named_parameters(), masked.parameters(), strict=False)
        if "dsee_V" in key and own.shape == other.shape
    ]
    assert len(pairs) > 3
    for own, other in pairs:
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("parts", [None, ["key"], ["query", "key", "value"]], ids=str)
def test_an_update_on_parts_of_a_fused_projection_is_cut_and_loads(parts, tmp_path):
    fused = None if parts is None else {"c_attn": parts}
    base = {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "n_sparse": 20, "fused_parts": fused}
    model = strong(build("gpt2"), **base).double()
    masked = zeroed(model, UNEVEN)
    cut(model, UNEVEN)
    equal(model, masked, "gpt2", torch.float64)
    model.save_pretrained(tmp_path)
    other = build("gpt2").double()
    cut(other, UNEVEN)
    loaded = PeftModel.from_pretrained(other, tmp_path).double().eval()
    # stored in the update's own precision
    torch.testing.assert_close(answer(loaded, "gpt2"), answer(model, "gpt2"), rtol=0.0, atol=1e-6)


def test_every_attribute_that_counts_is_rewritten():
    gpt2, llama, deberta = (build(name) for name in ("gpt2", "llama", "deberta-v2"))
    for model in (gpt2, llama, deberta):
        cut(model, UNEVEN)
    blocks = gpt2.transformer.h
    assert [(block.attn.num_heads, block.attn.split_size) for block in blocks] == [(2, 16), (4, 32), (1, 8)]
    assert [(block.attn.c_attn.nf, block.attn.c_proj.nx) for block in blocks] == [(48, 16), (96, 32), (24, 8)]
    assert [(block.mlp.c_fc.nf, block.mlp.c_proj.nx) for block in blocks] == [(36, 36), (1, 1), (40, 40)]
    assert [layer.mlp.intermediate_size for layer in llama.model.layers] == [36, 1, 40]
    assert [layer.self_attn.q_proj.out_features for layer in llama.model.layers] == [32, 64, 16]
    assert [layer.self_attn.k_proj.out_features for layer in llama.model.layers] == [16, 32, 8]
    assert {layer.self_attn.num_key_value_groups for layer in llama.model.layers} == {2}
    own = [layer.attention.self for layer in deberta.deberta.encoder.layer]
    assert [(each.num_attention_heads, each.all_head_size) for each in own] == [(2, 16), (4, 32), (1, 8)]
    assert [each.pos_key_proj.out_features for each in own] == [16, 32, 8]
