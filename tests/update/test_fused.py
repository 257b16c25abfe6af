"""GPT-2 holds query, key and value in one matrix; the update goes on chosen parts, each as on its own projection."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import dsee
from conftest import adapted, batch, logits
from dsee import support
from dsee.surgery.linear import select
from dsee.update.fused import FusedUp
from dsee.update.layer import update_layers
from dsee.update.thin import ThinLinear
from update.models import adapter_tensors, close, scrambled, tiny_gpt2

CHOICES = [["query", "value"], ["value"], ["query", "key", "value"], ["key", "query"]]
ROWS = {"query": slice(0, 32), "key": slice(32, 64), "value": slice(64, 96)}


def fused(parts=("query", "value"), **config):
    settings = {"task_type": "CAUSAL_LM", "support": "magnitude", "fused_parts": {"c_attn": list(parts)}}
    return adapted(tiny_gpt2(), **(settings | config))


def first(model):
    return update_layers(model)[0][1]


class ThreeProjections(torch.nn.Module):
    """A fused Linear, in the order query, key, value, under a name of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.Wqkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(24, 3)

    def forward(self, x):
        return self.out(self.Wqkv(x).relu())


@pytest.mark.parametrize("parts", CHOICES, ids="+".join)
@pytest.mark.parametrize(("r", "n_sparse"), [(4, 9), (0, 9), (4, 0)])
def test_the_counts_are_those_of_separate_projections(parts, r, n_sparse):
    model = fused(parts, r=r, n_sparse=n_sparse)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # two layers; (in + out of one projection) = 32 + 32
    assert trained == 2 * len(parts) * (r * (32 + 32) + n_sparse)


@pytest.mark.parametrize("parts", CHOICES, ids="+".join)
def test_only_the_chosen_parts_change(parts):
    delta = first(fused(parts)).get_delta_weight("default").T
    for part, rows in ROWS.items():
        assert bool(delta[rows].any()) == (part in parts)


def test_by_default_gpt2_adapts_query_and_value_and_says_so():
    model = adapted(tiny_gpt2(), task_type="CAUSAL_LM", fused_parts=None)
    assert model.peft_config["default"].fused_parts == {"attn.c_attn": ["query", "value"]}
    assert first(model).dsee_U["default"].parts == (0, 2)
    assert not first(model).get_delta_weight("default").T[ROWS["key"]].any()


def test_cross_attention_which_fuses_two_is_adapted_as_a_whole():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=20, add_cross_attention=True)
    model = adapted(GPT2LMHeadModel(config), task_type="CAUSAL_LM")
    kinds = {name.split(".")[-2]: type(layer.dsee_U["default"]) for name, layer in update_layers(model)}
    assert kinds == {"attn": FusedUp, "crossattention": ThinLinear}


def test_each_part_is_its_own_low_rank_product():
    layer = first(fused(n_sparse=0))
    up, low = layer.dsee_U["default"].weight, layer.dsee_V["default"].weight
    assert (up.shape, low.shape) == ((64, 4), (8, 32))
    delta = layer.get_delta_weight("default").T / layer.dsee_scaling["default"]
    torch.testing.assert_close(delta[ROWS["query"]], up[:32] @ low[:4])
    torch.testing.assert_close(delta[ROWS["value"]], up[32:] @ low[4:])
    factors = layer.factors("default")
    assert [tuple(factor.shape) for factor in factors] == [(96, 8), (8, 32)]
    torch.testing.assert_close(factors[0] @ factors[1], delta)


@pytest.mark.parametrize("rule", ["grebsmo", "magnitude", "random", "residual"])
def test_each_part_has_n_positions_in_its_own_rows(rule):
    layer = first(fused(support=rule, n_sparse=7))
    rows = layer.dsee_S["default"].rows_and_columns()[0]
    assert torch.bincount(rows // 32, minlength=3).tolist() == [7, 0, 7]


def test_the_support_of_a_part_is_that_of_its_own_matrix():
    layer = first(fused(["value"]))
    weight = layer.base_weight()[ROWS["value"]]
    expected = support.choose("magnitude", weight, 9, rank=4, seed=0) + 64 * 32
    assert torch.equal(layer.dsee_S["default"].indices.long(), expected)


@pytest.mark.parametrize("parts", CHOICES, ids="+".join)
@pytest.mark.parametrize("config", [{}, {"r": 0}, {"n_sparse": 0}], ids=["both", "sparse", "low rank"])
def test_the_forward_equals_a_base_with_dw_added(parts, config):
    model, base = fused(parts, **config), tiny_gpt2()
    for name, layer in update_layers(model):
        base.get_submodule(name.removeprefix("base_model.model.")).weight.data += layer.get_delta_weight("default")
    assert not torch.equal(logits(base), logits(tiny_gpt2()))
    torch.testing.assert_close(logits(model), logits(base), **close())


def test_gradients_equal_those_through_dw():
    layer = copy.deepcopy(first(fused()))
    x, weights = torch.randn(5, 32), torch.randn(5, 96)
    (layer(x) * weights).sum().backward()
    up, low, sparse = (getattr(layer, f"dsee_{part}")["default"] for part in "UVS")
    u, v, s = (t.detach().clone().requires_grad_() for t in (up.weight, low.weight, sparse.weight))
    full = torch.zeros(96 * 32).index_put((sparse.indices.long(),), s).view(96, 32)
    full = full + torch.cat([u[:32] @ v[:4], torch.zeros(32, 32), u[32:] @ v[4:]])
    ((x @ full.T * layer.dsee_scaling["default"]) * weights).sum().backward()
    for ours, theirs in [(up, u), (low, v), (sparse, s)]:
        torch.testing.assert_close(ours.weight.grad, theirs.grad, rtol=1e-5, atol=1e-4)


def test_a_fresh_update_changes_no_logit():
    assert torch.equal(logits(fused(init_weights=True)), logits(tiny_gpt2()))


def test_merging_and_unmerging():
    model = fused()
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, **close())
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), before, **close())
    torch.testing.assert_close(logits(dsee.merge(model)), before, **close())


@pytest.mark.parametrize("n", [9, [3, 5]], ids=["one N", "N of each part"])
def test_three_loaders_give_the_same_logits(n, tmp_path):
    base = tiny_gpt2()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = adapted(
        base, task_type="CAUSAL_LM", support="magnitude", target_modules=["c_attn"], n_sparse_pattern={"c_attn": n}
    )
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    stored = adapter_tensors(tmp_path / "adapter")
    assert stored["base_model.model.transformer.h.0.attn.c_attn.dsee_U.weight"].shape == (64, 4)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    loaded.load_adapter(str(tmp_path / "adapter"))
    for again in (
        PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "adapter"),
        PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "adapter", low_cpu_mem_usage=True),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        loaded,
    ):
        assert torch.equal(logits(again.eval()), expected)


def test_a_mixed_batch_of_two_choices_of_parts():
    model = fused()
    config = {"task_type": "CAUSAL_LM", "support": "random", "r": 2, "n_sparse": 5, "init_weights": False}
    model.add_adapter("second", dsee.DseeConfig(**config, fused_parts={"c_attn": ["key"]}))
    scrambled(scrambled(model), "second", 4).eval()
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = logits(model)
    names = ["second", "default", "__base__", "second"]
    with torch.no_grad():
        mixed = model(**batch(), adapter_names=names).logits
    for row, name in enumerate(names):
        expected = logits(tiny_gpt2()) if name == "__base__" else alone[name]
        torch.testing.assert_close(mixed[row], expected[row], **close())
    model.set_adapter("default")
    model.delete_adapter("second")
    assert list(first(model).dsee_parts) == ["default"]


@pytest.mark.parametrize("parts", CHOICES, ids="+".join)
def test_cutting_rows_equals_slicing_dw(parts):
    layer = first(fused(parts, n_sparse=40))
    before, weight = dense_of(layer), layer.base_weight().clone()
    keep = torch.cat([torch.arange(8, 24) + 32 * part for part in range(3)])
    select(layer, keep, 0)
    torch.testing.assert_close(dense_of(layer), before[keep], **close())
    assert torch.equal(layer.base_weight(), weight[keep])
    x = torch.randn(2, 32)
    expected = x @ (weight[keep].double() + before[keep].double()).float().T + layer.get_base_layer().bias
    torch.testing.assert_close(layer(x).detach(), expected, **close())


def dense_of(layer):
    return layer.get_delta_weight("default").T


def test_cutting_columns_equals_slicing_dw():
    layer = first(fused())
    before = dense_of(layer)
    keep = torch.arange(4, 30)
    select(layer, keep, 1)
    torch.testing.assert_close(dense_of(layer), before[:, keep], **close())


def test_an_uneven_cut_is_refused_and_nothing_changed():
    layer = first(fused())
    with pytest.raises(dsee.InputError, match="as many rows of query, key and value, not 16, 32, 32"):
        select(layer, torch.arange(16, 96), 0)
    assert layer.base_weight().shape == (96, 32)


def test_after_a_cut_the_sizes_of_each_part_are_stated():
    layer = first(fused(n_sparse=40))
    assert layer.n_sparse_of("default") == 40
    select(layer, torch.cat([torch.arange(8, 24) + 32 * part for part in range(3)]), 0)
    rows = layer.dsee_S["default"].rows_and_columns()[0]
    assert layer.n_sparse_of("default") == [int((rows // 16 == part).sum()) for part in (0, 2)]


def test_a_fused_linear_of_any_name_can_be_named():
    base = ThreeProjections()
    x = torch.randn(4, 8)
    before = base(x)
    config = dsee.DseeConfig(target_modules=["Wqkv"], fused_parts={"Wqkv": ["query", "value"]}, r=2, n_sparse=3)
    model = get_peft_model(base, config)
    assert torch.equal(model(x), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (2 * (8 + 8) + 3)
    scrambled(model)
    _, layer = update_layers(model)[0]
    torch.testing.assert_close(layer.get_delta_weight("default").double(), dense_oracle(layer), rtol=0, atol=1e-6)


def dense_oracle(layer):
    """Query and value as two separate updates, from the stored tensors."""
    full = torch.zeros(24, 8, dtype=torch.float64)
    up, low = layer.dsee_U["default"].weight.detach().double(), layer.dsee_V["default"].weight.detach().double()
    full[:8], full[16:] = up[:8] @ low[:2], up[8:] @ low[2:]
    sparse = layer.dsee_S["default"]
    full.view(-1)[sparse.indices.long()] += sparse.weight.detach().double()
    return full * layer.dsee_scaling["default"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"c_attn": ["querry"]}, "no part 'querry'. Did you mean 'query'"),
        ({"c_attn": []}, "a list of parts"),
        ({"c_attn": ["query", "query"]}, "each once"),
        ({"c_attn": "query"}, "a list of parts"),
        ({"c_atn": ["query"]}, "no layer of GPT2LMHeadModel is called 'c_atn'. Did you mean 'c_attn'"),
        ({"c_fc": ["query"]}, "are not query, key and value of one width"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(parts, message):
    with pytest.raises(dsee.InputError, match=message):
        adapted(tiny_gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"], fused_parts=parts)


def test_a_family_that_interleaves_heads_is_refused():
    base = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=40))
    with pytest.raises(dsee.InputError, match="'bloom' keeps query, key and value of one head together"):
        adapted(base, task_type="CAUSAL_LM", fused_parts={"query_key_value": ["query"]})


def test_too_many_or_too_few_sizes_are_refused():
    with pytest.raises(dsee.InputError, match=r"gives 3 sizes for .*c_attn, which takes 2"):
        fused(n_sparse_pattern={"c_attn": [1, 2, 3]})


def test_training_moves_the_chosen_parts_and_no_other():
    model = fused(init_weights=True).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    inputs = batch()
    losses = []
    for _ in range(8):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    delta = dense_of(first(model))
    assert not delta[ROWS["key"]].any()
    assert delta[ROWS["query"]].any()
    assert delta[ROWS["value"]].any()
    assert isinstance(first(model).get_base_layer(), Conv1D)
