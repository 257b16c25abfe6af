"""GPT-2's Conv1D stores (in, out); the update works in (out, in) all the same."""

import pytest
import torch

from conftest import adapted, logits
from dsee import support
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, close, dense_update, tiny_gpt2


def test_the_forward_equals_a_base_with_the_dense_update_added():
    model, base = adapted_gpt2(target_modules=["c_attn", "c_fc", "mlp.c_proj"]), tiny_gpt2()
    assert len(update_layers(model)) == 6
    for name, layer in update_layers(model):
        base.get_submodule(name.removeprefix("base_model.model.")).weight.data += dense_update(layer).T.float()
    torch.testing.assert_close(logits(model), logits(base), **close())


@pytest.mark.parametrize("parts", [{}, {"r": 0}, {"n_sparse": 0}], ids=["both", "sparse", "low rank"])
def test_the_merged_model_equals_the_unmerged(parts):
    model = adapted_gpt2(**parts)
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, **close())
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), before, **close())
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), before, **close())


def test_positions_are_counted_in_out_in_orientation():
    base = tiny_gpt2()
    # (in, out) = (32, 96): one weight stands out in each layer, at input 5 and output 70
    for block in base.transformer.h:
        block.attn.c_attn.weight.data[5, 70] = 9.0
    model = adapted(
        base, task_type="CAUSAL_LM", target_modules=["c_attn"], support="magnitude", n_sparse=1, fused_parts={}
    )
    for _, layer in update_layers(model):
        assert layer.dsee_S["default"].indices.tolist() == [70 * 32 + 5]
        assert layer.dsee_S["default"].shape.tolist() == [96, 32]


@pytest.mark.parametrize("rule", sorted(support.rules()))
def test_every_support_rule_serves_conv1d(rule):
    model = adapted_gpt2(support=rule, n_sparse=7)
    assert [layer.dsee_S["default"].n_sparse for _, layer in update_layers(model)] == [7, 7]


def test_the_default_configuration_serves_gpt2():
    model = adapted(tiny_gpt2(), task_type="CAUSAL_LM")
    assert {name.rpartition(".")[2] for name, _ in update_layers(model)} == {"c_attn"}
    assert logits(model).isfinite().all()


def test_the_update_follows_the_model_into_generation():
    # generate() caches keys and values and calls the layers token by token
    model = adapted_gpt2()
    start = torch.arange(5, 11)[None]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(start)}
    with torch.no_grad():
        answer = model.generate(input_ids=start, **options)
        grown = start
        for _ in range(4):
            grown = torch.cat([grown, model(input_ids=grown).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(answer, grown)
