"""The folded form equals the base plus the sparse product, and is taken only where nothing is passed over."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from conftest import adapted, batch, logits, tiny_bert
from dsee.update import folded
from dsee.update.folded import can_fold, folded_product, worth_folding
from dsee.update.layer import update_layers
from update.kernel import SETTINGS, case, dense, tolerance
from update.models import adapted_gpt2, close, own

# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def linear(kind, out_features, in_features, bias=True, dtype=torch.float32):
    """A frozen base: (out, in) or, for Conv1D, (in, out)."""
    torch.manual_seed(0)
    base = Conv1D(out_features, in_features) if kind == "conv1d" else torch.nn.Linear(in_features, out_features, bias)
    torch.nn.init.normal_(base.weight)
    return base.to(dtype).requires_grad_(False)


def folded_and_dense(base, x, values, indices, weights):
    """Result and gradients of x, values and bias, by the folded form and by the dense one."""
    found = []
    for by_dense in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, values)]
        if by_dense:
            out_features = weights.shape[-1]
            y = base(leaves[0]) + leaves[0] @ dense(leaves[1], indices, out_features, x.shape[-1]).T
        else:
            y = folded_product(base, *leaves, indices)
        wanted = leaves + ([base.bias] if base.bias is not None and base.bias.requires_grad else [])
        found.append([y.detach(), *torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)])
    return zip(*found, strict=True)


@SETTINGS
@given(
    kind=st.sampled_from(["linear", "conv1d"]),
    lead=st.lists(st.integers(1, 4), max_size=3),
    out_features=st.integers(1, 8),
    in_features=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_dense_product(kind, lead, out_features, in_features, share, seed):
    n = round(share * out_features * in_features)
    y, x, values, indices = case(lead, out_features, in_features, n, seed=seed)
    terms = max(n, in_features, out_features, x[..., 0].numel())
    for ours, theirs in folded_and_dense(linear(kind, out_features, in_features), x, values, indices, y):
        torch.testing.assert_close(ours, theirs, **tolerance(x.dtype, terms, 32.0))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("n", [0, 1, 7, 12], ids=["none", "one", "odd", "all of W"])
def test_gradcheck_in_double_precision(kind, n):
    _, x, values, indices = case((2, 3), 3, 4, n, dtype=torch.float64)
    base = linear(kind, 3, 4, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (x, values)]
    assert torch.autograd.gradcheck(lambda x, v: folded_product(base, x, v, indices), leaves)


@pytest.mark.parametrize("bias", ["trained", "none"])
def test_the_bias_may_be_trained_or_missing(bias):
    base = linear("linear", 5, 7, bias=bias == "trained")
    if bias == "trained":
        base.bias.requires_grad_()
    y, x, values, indices = case((2, 3), 5, 7, 9)
    pairs = list(folded_and_dense(base, x, values, indices, y))
    assert len(pairs) == (4 if bias == "trained" else 3)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **tolerance(x.dtype, 9, 32.0))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_an_s2_of_zeros_changes_no_bit(kind):
    base = linear(kind, 5, 7)
    _, x, _, indices = case((2, 3), 5, 7, 9)
    for grad in (False, True):
        assert torch.equal(folded_product(base, x, torch.zeros(9, requires_grad=grad), indices), base(x))


def test_nothing_dense_outlives_the_call():
    base = linear("linear", 40, 30)
    _, x, values, indices = case((64,), 40, 30, 500)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        folded_product(base, x.requires_grad_(), values.requires_grad_(), indices)
    assert set(saved) == {x.data_ptr(), base.weight.data_ptr(), values.data_ptr(), indices.data_ptr()}


def test_without_a_gradient_for_x_the_weight_is_not_kept():
    base = linear("linear", 40, 30)
    _, x, values, indices = case((64,), 40, 30, 500)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        folded_product(base, x, values.requires_grad_(), indices)
    assert set(saved) == {x.data_ptr(), indices.data_ptr()}


def test_the_base_is_left_as_it_was():
    base = linear("linear", 5, 7)
    _, x, values, indices = case((2, 3), 5, 7, 9)
    before = base.weight.clone()
    folded_product(base, x, values.requires_grad_(), indices).sum().backward()
    assert torch.equal(base.weight, before)
    assert base.weight.grad is None


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


class Own(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(base):
    base.register_forward_hook(lambda *_: None)


def replaced(base):
    base.forward = lambda x: x


def parametrized(base):
    parametrize.register_parametrization(base, "weight", Doubled())


def trained(base):
    base.weight.requires_grad_()


def halved(base):
    base.half()


@pytest.mark.parametrize("change", [hooked, replaced, parametrized, trained, halved])
def test_a_base_that_does_more_than_multiply_is_not_passed_over(change):
    base, x = linear("linear", 5, 7), torch.zeros(2, 7)
    assert can_fold(base, x)
    change(base)
    assert not can_fold(base, x.to(base.weight.dtype))


def test_other_classes_other_dtypes_and_autocast_are_not_folded():
    base, x = linear("linear", 5, 7), torch.zeros(2, 7)
    assert not can_fold(Own(7, 5).requires_grad_(False), x)
    assert not can_fold(base, x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_fold(base, x)


def test_few_tokens_or_few_entries_are_not_worth_it():
    assert worth_folding(n_sparse=1000, tokens=4096, weights=768 * 768)
    assert not worth_folding(n_sparse=1000, tokens=1, weights=768 * 768)
    assert not worth_folding(n_sparse=10, tokens=4096, weights=768 * 768)


@pytest.fixture
def always(monkeypatch):
    """Counts the calls of the folded form, which is taken whenever it can be."""
    calls = []
    monkeypatch.setattr(folded, "FOLD_TOKENS", 0)
    monkeypatch.setattr(folded, "FOLD_PRODUCTS", 0.0)
    plain = folded._product
    monkeypatch.setattr(folded, "_product", lambda *a: calls.append(1) or plain(*a))
    return calls


def build(family, **config):
    if family == "gpt2":
        return adapted_gpt2(**config)
    return adapted(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), **config)


def gradients(model):
    inputs = batch(labels=True)
    if "labels" in inputs and model.config.model_type == "gpt2":
        inputs["labels"] = inputs["input_ids"]
    model.train()(**inputs).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if name in own(model)}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("parts", [{}, {"r": 0}], ids=["both", "sparse"])
def test_a_model_gives_the_same_logits_and_gradients_either_way(family, parts, always, monkeypatch):
    if family == "gpt2":
        parts = parts | {"target_modules": ["c_attn", "c_fc"]}
    model = build(family, **parts)
    ours, our_gradients = logits(model), gradients(model)
    assert len(always) == 2 * len(update_layers(model))
    monkeypatch.setattr(folded, "FOLD_TOKENS", 10**9)
    other = build(family, **parts)
    torch.testing.assert_close(ours, logits(other), **close())
    theirs = gradients(other)
    assert len(always) == 2 * len(update_layers(model))
    for name, grad in our_gradients.items():
        torch.testing.assert_close(grad, theirs[name], **close())


def test_a_fresh_update_changes_no_logit(always):
    assert torch.equal(logits(adapted(tiny_bert(), init_weights=True)), logits(tiny_bert()))
    assert always


def test_gradient_checkpointing_gives_the_same_gradients(always):
    plain = gradients(build("bert"))
    model = build("bert")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model)
    assert all(torch.equal(again[name], grad) for name, grad in plain.items())


def test_two_active_adapters_and_dropout_take_the_other_form(always):
    model = build("bert", task_type=None)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    logits(model)
    logits(build("bert", dropout=0.5).train())
    assert not always
    logits(build("bert", dropout=0.5))
    assert always
