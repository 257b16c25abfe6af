"""DseeConfig(masked=True): the update keeps to the base's mask, so that a masked merge changes nothing."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import adapted, batch, logits, tiny_bert
from cut_families import answer, build, task_type
from dsee.masks import get_mask, oriented, set_mask
from dsee.pruning.targets import mask_targets
from dsee.update.layer import update_layers
from update.models import close, dense_update, scrambled, train_step

RULES = {
    "weights": dsee.Weights(0.6, score="weight"),
    "blocks": dsee.Blocks(0.5, score="weight"),
    "2:4": dsee.NofM(2, 4, score="weight"),
}
TARGETS = {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "intermediate.dense"], "llama": ["q_proj", "down_proj"]}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def pruned(name="bert", rule="weights", dtype=torch.float32, **config):
    settings_ = {"task_type": task_type(name), "target_modules": TARGETS[name], "support": "random", "masked": True}
    model = scrambled(adapted(build(name).to(dtype), **(settings_ | config)))
    dsee.prune(model, RULES[rule])
    return model.eval()


def oracle(layer):
    """What the layer computes with, (out, in), fp64, from the stored tensors alone."""
    mask = get_mask(layer)
    weight = layer.base_weight().double()
    return torch.where(mask, weight + dense_update(layer), 0.0)


@settings(max_examples=16, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.sampled_from(sorted(RULES)), st.sampled_from(DTYPES), st.booleans())
def test_merged_logits_are_the_unmerged_ones_to_the_bit(name, rule, dtype, sparse_only):
    model = pruned(name, rule, dtype, **({"r": 0} if sparse_only else {}))
    before = answer(model, name)
    masks = {target.name: target.mask for target in mask_targets(model)}
    with warnings.catch_warnings():
        # nothing is dropped, so nothing has to be said
        warnings.simplefilter("error")
        merged = dsee.merge(model)
    assert torch.equal(answer(merged, name), before)
    for target in mask_targets(merged):
        assert not oriented(target.linear)[~masks[target.name]].any()
        assert torch.equal(target.mask, masks[target.name])


def test_the_update_matters_to_the_logits_that_are_compared():
    model = pruned()
    with model.disable_adapter():
        base = logits(model)
    assert (logits(model) - base).abs().max() > 1e-2
    plain = pruned(masked=False)
    assert (logits(model) - logits(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("policy", ["masked", "dense", "split", "error"])
def test_every_policy_merges_it_exactly_and_keeps_the_masks(policy):
    model = pruned()
    before = logits(model)
    merged = dsee.merge(model, policy=policy)
    assert torch.equal(logits(merged), before)
    assert all(target.mask is not None for target in mask_targets(merged))
    step = dsee.history(merged)[-1]
    assert step["zeros_after"] == step["zeros_before"]
    assert step.get("dropped", 0.0) == 0.0


@pytest.mark.parametrize("config", [{}, {"r": 0}, {"n_sparse": 0}], ids=["both", "sparse", "low rank"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_forward_and_gradients_equal_the_dense_oracle(name, config):
    config = config | ({"fused_parts": {}} if name == "gpt2" else {})
    model = pruned(name, dtype=torch.float64, **config).double()
    layer = update_layers(model)[0][1]
    x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = layer(x)
    mask, weight = get_mask(layer), oracle(layer).requires_grad_()
    expected = torch.nn.functional.linear(x, weight, layer.get_base_layer().bias)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, [x, weight], upstream)
    found = torch.autograd.grad(y, [x, *(p for p in layer.parameters() if p.requires_grad)], upstream)
    torch.testing.assert_close(found[0], wanted[0])
    dense, scaling = wanted[1] * mask, layer.dsee_scaling["default"]
    named = dict(zip([n for n, p in layer.named_parameters() if p.requires_grad], found[1:], strict=True))
    for key, gradient in named.items():
        if "dsee_U" in key:
            torch.testing.assert_close(gradient, scaling * dense @ layer.dsee_V["default"].weight.T)
        elif "dsee_V" in key:
            torch.testing.assert_close(gradient, scaling * layer.dsee_U["default"].weight.T @ dense)
        else:
            places = layer.dsee_S["default"].indices.long()
            torch.testing.assert_close(gradient, scaling * dense.reshape(-1)[places])
    assert len(named) == {"r": 1, "n_sparse": 2}.get(next((key for key in config if key != "fused_parts"), ""), 3)


def test_gradients_of_a_fused_layer_reach_its_blocks():
    model = pruned("gpt2", dtype=torch.float64).double()
    layer = next(layer for _, layer in update_layers(model) if layer.dsee_parts)
    up, low = layer.dsee_U["default"], layer.dsee_V["default"]
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def output(weight):
        return torch.func.functional_call(layer, {"dsee_U.default.weight": weight}, (x,)).square().sum()

    found = torch.autograd.grad(output(up.weight), up.weight)[0]
    step = 1e-6 * torch.randn(up.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    change = (output(up.weight + step) - output(up.weight - step)) / 2
    torch.testing.assert_close((found * step).sum(), change, rtol=1e-6, atol=0)
    assert low.weight.requires_grad


def test_with_dropout_the_update_alone_sees_the_thinned_input():
    model = pruned(dropout=0.5)
    layer = update_layers(model)[0][1].train()
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(4)
    found = layer(x)
    torch.manual_seed(4)
    thinned = torch.nn.functional.dropout(x, 0.5)
    base = layer.get_base_layer()
    expected = base(x) + thinned @ (dense_update(layer) * get_mask(layer)).float().T
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_small_update_is_not_rounded_away_while_tuning(dtype):
    model = pruned(dtype=dtype, r=1, n_sparse=0)
    layer = update_layers(model)[0][1].train()
    signs = torch.ones(32)
    signs[::2] = -1.0
    with torch.no_grad():
        set_mask(layer, torch.arange(32 * 32).view(32, 32) >= 1)
        oriented(layer).fill_(1.0)
        layer.get_base_layer().bias.zero_()
        layer.dsee_U["default"].weight.fill_(1e-4 / layer.dsee_scaling["default"])
        layer.dsee_V["default"].weight.copy_(signs)
    # W x is zero and dW x is not, while W + dW would round to W
    found = layer(signs[None].to(dtype))[0, 1:].float()
    torch.testing.assert_close(found, torch.full((31,), 32e-4), rtol=0.02, atol=0)
    with torch.no_grad():
        assert not layer.eval()(signs[None].to(dtype))[0, 1:].any(), "as the merged one has it"


def test_it_trains_under_autocast_as_without():
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for enabled in (False, True):
        layer = update_layers(pruned())[0][1].train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        y.float().square().sum().backward()
        gradients.append(layer.dsee_U["default"].weight.grad)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.02 * float(gradients[0].abs().max()))


def test_a_mask_that_comes_while_tuning_counts_from_then_on():
    model = adapted(tiny_bert(), masked=True, support="random", init_weights=True, target_modules=TARGETS["bert"])
    plain = adapted(tiny_bert(), support="random", init_weights=True, target_modules=TARGETS["bert"])
    train_step(model), train_step(plain)
    assert torch.equal(logits(model.eval()), logits(plain.eval())), "without a mask it is as any other"
    dsee.prune(model, dsee.Weights(0.4, score="weight"))
    optimizer = train_step(model)
    dsee.prune(model, dsee.Weights(0.6, score="weight"))
    train_step(model, optimizer)
    model.eval()
    expected = logits(model)
    assert torch.equal(logits(dsee.merge(model)), expected)


# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_and_several_steps_move_the_update_alone():
    model = pruned()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    bases = {name: layer.base_weight().clone() for name, layer in update_layers(model)}
    optimizer = None
    for seed in range(2):
        optimizer = train_step(model, optimizer, seed=seed)
    assert all(torch.equal(bases[name], layer.base_weight()) for name, layer in update_layers(model))


def test_the_zeros_of_a_base_that_came_with_them_become_its_masks():
    base = tiny_bert()
    query = base.bert.encoder.layer[0].attention.self.query
    query.weight.data[:, :16] = 0.0
    model = scrambled(adapted(base, masked=True))
    assert torch.equal(get_mask(query), query.weight != 0)
    before = logits(model)
    merged = dsee.merge(model)
    # the matrices without zeros are merged as ever, with the rounding of that
    torch.testing.assert_close(logits(merged), before, **close())
    assert not merged.bert.encoder.layer[0].attention.self.query.weight[:, :16].any()


def test_a_matrix_that_is_all_zero_is_no_mask():
    base = tiny_bert()
    base.bert.encoder.layer[0].attention.self.query.weight.data.zero_()
    base.bert.encoder.layer[1].attention.self.query.weight.data[:16] = 0.0
    layers = [layer for name, layer in update_layers(adapted(base, masked=True, support="random")) if "query" in name]
    assert [get_mask(layer) is None for layer in layers] == [True, False, True]


def test_its_support_lies_among_kept_weights():
    base = tiny_bert()
    dsee.prune(base, dsee.Weights(0.5, score="random"))
    model = adapted(base, masked=True, support="random", n_sparse=50)
    for _, layer in update_layers(model):
        kept = get_mask(layer).reshape(-1)
        assert kept[layer.dsee_S["default"].indices.long()].all()


def test_it_comes_back_from_disk_as_a_masked_one(tmp_path):
    model = pruned()
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert loaded.peft_config["default"].masked
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(dsee.merge(loaded)), logits(model))


def test_masked_and_free_updates_mix_in_one_batch():
    model = pruned()
    free = {"task_type": "SEQ_CLS", "r": 2, "n_sparse": 5, "support": "random", "init_weights": False}
    model.add_adapter("free", dsee.DseeConfig(**free, target_modules=TARGETS["bert"]))
    scrambled(model, "free", 5).eval()
    names = ["free", "default", "__base__", "default"]
    with torch.no_grad():
        mixed = model(**batch(), adapter_names=names).logits
    for row, name in enumerate(names):
        if name != "__base__":
            model.set_adapter(name)
            torch.testing.assert_close(mixed[row], logits(model)[row], rtol=0, atol=1e-4)
    layer, x = update_layers(model)[0][1], torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    layer.set_adapter(["default", "free"])
    both = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), both)


def test_heads_and_neurons_cut_afterwards_take_the_mask_along():
    model = pruned()
    dsee.prune(model, dsee.Heads(1), dsee.Neurons(8, score="weight"))
    before = logits(model)
    assert torch.equal(logits(dsee.merge(model)), before)


def test_a_cleared_mask_sets_the_update_free():
    model, free = pruned(), pruned(masked=False)
    for one in (model, free):
        for _, layer in update_layers(one):
            set_mask(layer, None)
    assert torch.equal(logits(model), logits(free))


def test_lora_cannot_say_it_and_export_refuses(tmp_path):
    with pytest.raises(dsee.InputError, match=r"keeps to the base's mask"):
        dsee.export_lora(pruned(), tmp_path / "out")


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_and_unmerging_leaves_every_bit_of_the_base(dtype):
    model = adapted(tiny_bert().to(dtype), support="random")
    base = {name: layer.base_weight().clone() for name, layer in update_layers(scrambled(model))}
    other = {"task_type": "SEQ_CLS", "r": 2, "n_sparse": 5, "support": "random", "init_weights": False}
    model.add_adapter("second", dsee.DseeConfig(**other))
    scrambled(model, "second", 4)
    first = logits(model)
    for _ in range(5):
        for names in (["default"], ["second"], ["default", "second"]):
            model.merge_adapter(names)
            assert any(not torch.equal(base[name], layer.base_weight()) for name, layer in update_layers(model))
            model.unmerge_adapter()
    assert all(torch.equal(base[name], layer.base_weight()) for name, layer in update_layers(model))
    assert torch.equal(logits(model), first)


@pytest.mark.slow
# the compiler of torch 2.13 uses things that torch 2.13 calls deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_in_one_graph():
    model = pruned()
    expected = logits(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(logits(compiled), expected)
    gradients = []
    for one in (model, compiled):
        model.zero_grad()
        one(**batch(labels=True)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    torch.testing.assert_close(*gradients)
