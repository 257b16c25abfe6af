"""dsee.merge says what becomes of the zeros of a sparse base."""

import re
import warnings

import pytest
import torch

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, close, dense_update, scrambled, tiny_gpt2

PARTS = ("query", "value")


def sparse_bert(share=0.5, parts=PARTS):
    """A BERT in whose query and value matrices the smallest weights are zero."""
    base = tiny_bert()
    for layer in base.bert.encoder.layer:
        for part in parts:
            weight = getattr(layer.attention.self, part).weight.data
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values] = 0
    return base


def zeros(model):
    return {name: weight == 0 for name, weight in model.state_dict().items() if re.search("(query|value).weight", name)}


def silently(function, *args, **kwargs):
    with warnings.catch_warnings():
        # merging remarks what happens to the update at the zeros; other tests look at that
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def test_masked_keeps_each_zero_and_says_what_was_dropped():
    model, before = scrambled(adapted(sparse_bert())), zeros(sparse_bert())
    lost = total = 0.0
    for name, layer in update_layers(model):
        delta = dense_update(layer)
        lost += float(delta[before[f"{name.removeprefix('base_model.model.')}.weight"]].square().sum())
        total += float(delta.square().sum())
    with pytest.warns(UserWarning, match="every zero kept") as caught:
        merged = dsee.merge(model)
    after = zeros(merged)
    assert all(torch.equal(after[name], mask) for name, mask in before.items())
    assert f"{(lost / total) ** 0.5:.1%} of the update's norm" in str(caught[0].message)


def test_masked_adds_the_update_wherever_there_is_a_weight():
    model, base = scrambled(adapted(sparse_bert())), sparse_bert()
    updates = {name.removeprefix("base_model.model."): dense_update(layer) for name, layer in update_layers(model)}
    merged = silently(dsee.merge, model, policy="masked")
    for name, delta in updates.items():
        weight = base.get_submodule(name).weight.double()
        expected = torch.where(weight == 0, 0.0, weight + delta)
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(merged.get_submodule(name).weight.double(), expected, rtol=4 * eps, atol=32 * eps)


def test_dense_equals_the_unmerged_model_and_says_how_many_zeros_it_cost():
    model = scrambled(adapted(sparse_bert()))
    before = logits(model)
    with pytest.warns(UserWarning, match=r"zeros fell from [0-9.]+% to 0\.0%"):
        merged = dsee.merge(model, policy="dense")
    torch.testing.assert_close(logits(merged), before, **close())
    assert not any(bool(mask.any()) for mask in zeros(merged).values())


def test_error_refuses_names_the_first_matrix_and_changes_nothing():
    model = scrambled(adapted(sparse_bert()))
    before, state = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(dsee.OrderError, match=r"6 matrices hold zeros.*layer\.0\.attention\.self\.query"):
        dsee.merge(model, policy="error")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("policy", ["masked", "dense", "error"])
def test_a_base_without_zeros_merges_exactly_and_in_silence(policy, family):
    model = scrambled(adapted(family()))
    before = logits(model)
    merged = dsee.merge(model, policy=policy)
    assert type(merged) is type(family())
    torch.testing.assert_close(logits(merged), before, **close())


def test_zeros_in_matrices_without_an_update_do_not_matter():
    model = scrambled(adapted(sparse_bert(parts=("key",))))
    before = logits(model)
    torch.testing.assert_close(logits(dsee.merge(model, policy="error")), before, **close())


@pytest.mark.parametrize("share", [0.005, 0.02, 0.9])
def test_masked_keeps_the_zeros_of_a_matrix_that_has_few(share):
    # pruning by one threshold for the whole model leaves some matrices with very few
    base = sparse_bert(share, parts=("query",))
    base.bert.encoder.layer[0].attention.self.value.weight.data[:16] = 0
    before = zeros(base)
    merged = silently(dsee.merge, scrambled(adapted(base)), policy="masked")
    after = zeros(merged)
    assert all(torch.equal(after[name], mask) for name, mask in before.items())


def test_groups_of_two_in_four_stay_valid():
    base = tiny_bert()
    for layer in base.bert.encoder.layer:
        for part in PARTS:
            groups = getattr(layer.attention.self, part).weight.data.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
    merged = silently(dsee.merge, scrambled(adapted(base)))
    for mask in zeros(merged).values():
        assert bool((mask.view(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_zeros_stay_zero_in_other_dtypes(dtype):
    before = zeros(sparse_bert().to(dtype))
    merged = silently(dsee.merge, scrambled(adapted(sparse_bert().to(dtype))))
    assert all(torch.equal(zeros(merged)[name], mask) for name, mask in before.items())


def test_zeros_of_conv1d_stay_zero():
    base = tiny_gpt2()
    masks = {}
    for i, block in enumerate(base.transformer.h):
        weight = block.attn.c_attn.weight.data
        weight[weight.abs() < 0.1] = 0
        masks[i] = weight == 0
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "support": "magnitude"}
    merged = silently(dsee.merge, scrambled(adapted(base, **settings)))
    for i, block in enumerate(merged.transformer.h):
        assert torch.equal(block.attn.c_attn.weight == 0, masks[i])


def test_the_history_tells_the_zeros_of_the_model_before_and_after():
    base = sparse_bert()
    linear = [m.weight for m in base.modules() if isinstance(m, torch.nn.Linear)]
    share = sum(int((w == 0).sum()) for w in linear) / sum(w.numel() for w in linear)
    merged = silently(dsee.merge, scrambled(adapted(base)))
    step = dsee.history(merged)[-1]
    assert step["step"] == "merge"
    assert (step["policy"], step["zeros_after"]) == ("masked", pytest.approx(share, abs=1e-6))
    assert step["zeros_before"] == pytest.approx(share, abs=1e-6)


def test_the_merged_model_is_plain_and_frozen():
    merged = dsee.merge(adapted(tiny_bert()))
    assert not update_layers(merged)
    assert set(merged.state_dict()) == set(tiny_bert().state_dict())
    assert not any(p.requires_grad for p in merged.parameters())


def test_an_unknown_policy_is_refused_and_the_nearest_named():
    with pytest.raises(dsee.InputError, match=r"policy='maskd' is unknown\. Did you mean 'masked'"):
        dsee.merge(adapted(tiny_bert()), policy="maskd")


@pytest.mark.parametrize("what", ["a bare model", "a merged model", "no model"])
def test_nothing_to_merge_is_refused(what):
    model = {"a bare model": tiny_bert, "a merged model": lambda: dsee.merge(adapted(tiny_bert())), "no model": str}
    with pytest.raises(dsee.OrderError, match="carries no DSEE update"):
        dsee.merge(model[what]())


@pytest.mark.parametrize("policy", ["masked", "dense", "error"])
def test_an_update_that_peft_has_merged_already_is_refused_as_its_zeros_are_gone(policy):
    model = scrambled(adapted(sparse_bert()))
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="merged"):
        dsee.merge(model, policy=policy)


def test_an_update_without_peft_s_model_around_it_is_refused_with_words(tmp_path):
    # transformers' own load_adapter puts the layers into the model itself
    adapted(tiny_bert(), task_type=None).save_pretrained(tmp_path)
    model = tiny_bert()
    model.load_adapter(str(tmp_path))
    with pytest.raises(dsee.DseeError, match="PeftModel"):
        dsee.merge(model)


def test_gpt2_merges_exactly():
    model = scrambled(adapted_gpt2())
    before = logits(model)
    torch.testing.assert_close(logits(dsee.merge(model, policy="error")), before, **close())
