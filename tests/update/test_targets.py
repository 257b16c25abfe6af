"""Which layers carry an update, and what is refused."""

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import ModernBertConfig, ModernBertForSequenceClassification

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import close, tiny_gpt2


def covered(model):
    return {name.removeprefix("base_model.model.") for name, _ in update_layers(model)}


def linears(base):
    return {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}


def test_by_default_query_and_value_are_covered(family):
    leaves = {name.rpartition(".")[2] for name in covered(adapted(family()))}
    assert leaves in ({"query", "value"}, {"q_lin", "v_lin"})


def test_all_linear_covers_every_linear_but_the_head_that_is_trained_in_full(family):
    found = covered(adapted(family(), target_modules="all-linear"))
    assert found == {name for name in linears(family()) if "classifier" not in name}


def test_a_regular_expression_covers_what_it_matches():
    model = adapted(tiny_bert(), target_modules=r".*\.layer\.[02]\.attention\.self\.(query|key)")
    paths = {f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 2) for part in ("query", "key")}
    assert covered(model) == paths


def test_a_full_path_covers_one_layer():
    path = "bert.encoder.layer.1.output.dense"
    assert covered(adapted(tiny_bert(), target_modules=[path])) == {path}


def test_layers_to_transform_and_exclude_modules_narrow_the_choice():
    model = adapted(
        tiny_bert(), target_modules=["query", "key", "dense"], exclude_modules=["key"], layers_to_transform=[2]
    )
    layer = "bert.encoder.layer.2."
    assert covered(model) == {
        f"{layer}{part}"
        for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    }


@pytest.mark.parametrize(
    ("wrong", "meant", "base"), [("querry", "query", tiny_bert), ("c_atn", "c_attn", tiny_gpt2)], ids=["bert", "gpt2"]
)
@pytest.mark.parametrize("with_a_right_one", [False, True])
def test_a_name_that_exists_nowhere_is_refused_and_the_nearest_named(wrong, meant, base, with_a_right_one):
    targets = [wrong, meant] if with_a_right_one else [wrong]
    with pytest.raises(dsee.InputError, match=f"is called '{wrong}'. Did you mean '{meant}'"):
        adapted(base(), target_modules=targets, task_type=None)


def test_a_refused_name_is_answered_with_the_names_there_are():
    with pytest.raises(dsee.InputError) as caught:
        adapted(tiny_bert(), target_modules=["q_proj"])
    assert "BertForSequenceClassification" in str(caught.value)
    assert "dense, key, query, value" in str(caught.value)


def test_a_wrong_name_for_a_second_adapter_is_answered_with_the_layers_own_names():
    model = adapted(tiny_bert())
    with pytest.raises(dsee.InputError) as caught:
        model.add_adapter("second", dsee.DseeConfig(target_modules=["querry"]))
    assert "Did you mean 'query'" in str(caught.value)
    assert "default" not in str(caught.value)
    assert "base_layer" not in str(caught.value)


def test_a_layer_that_is_no_linear_is_refused_by_kind():
    with pytest.raises(dsee.InputError, match=r"LayerNorm.*Linear, Conv1D and Embedding"):
        adapted(tiny_bert(), target_modules=["LayerNorm"])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("query", r"for whole paths.*a name goes into a list, as in \['query'\]. Did you mean 'query'"),
        (r".*\.querry", "none of BertForSequenceClassification matches.*Did you mean 'query'"),
        (r".*\.(query", "is no regular expression"),
    ],
)
def test_an_expression_that_fits_nothing_is_refused(expression, message):
    with pytest.raises(dsee.InputError, match=message):
        adapted(tiny_bert(), target_modules=expression)


def tiny_modernbert():
    """A family without a map, whose projections are fused in a Linear."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        vocab_size=100,
        num_labels=3,
        pad_token_id=0,
        global_attn_every_n_layers=2,
    )
    return ModernBertForSequenceClassification(config).eval()


@pytest.mark.parametrize(
    "targets", [["Wqkv"], ["Wqkv", "Wo"], r".*attn\.W(qkv|o)", "all-linear"], ids=["name", "names", "regex", "all"]
)
def test_a_family_without_a_map_is_adapted_where_its_layers_are_named(targets):
    base = tiny_modernbert()
    fresh = adapted(tiny_modernbert(), target_modules=targets, init_weights=True)
    assert torch.equal(logits(fresh), logits(base))
    model = adapted(tiny_modernbert(), target_modules=targets, fused_parts={"Wqkv": ["query", "value"]})
    before = logits(model)
    assert not torch.equal(before, logits(base))
    model(**batch(labels=True)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(logits(model.merge_and_unload()), before, **close())


def test_the_parts_of_modernberts_fused_layer_are_query_key_and_value():
    # the value's rows, and they alone, are what attention averages: with all else equal a change there is linear
    model = adapted(tiny_modernbert(), target_modules=["Wqkv"], fused_parts={"Wqkv": ["key"]}, r=0, n_sparse=3)
    rows = update_layers(model)[0][1].dsee_S["default"].rows_and_columns()[0]
    assert set((rows // 32).tolist()) == {1}


class Plain(torch.nn.Module):
    """No transformers model, no configuration."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.upper = torch.nn.Linear(6, 8), torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.upper(self.lower(x).relu())


@pytest.mark.parametrize("targets", [["lower"], "low.*", "all-linear"])
def test_a_plain_module_is_adapted(targets):
    config = dsee.DseeConfig(target_modules=targets, r=2, n_sparse=3, init_weights=False)
    model, x = get_peft_model(Plain(), config), torch.randn(5, 6)
    assert covered(model) == ({"lower", "upper"} if targets == "all-linear" else {"lower"})
    before = model(x)
    assert not torch.equal(before, Plain()(x))
    before.sum().backward()
    torch.testing.assert_close(model.merge_and_unload()(x), before.detach(), **close())


def test_a_plain_module_is_adapted_by_injection():
    model = inject_adapter_in_model(dsee.DseeConfig(target_modules=["upper"], r=2, n_sparse=3), Plain())
    assert covered(model) == {"upper"}
    x = torch.randn(5, 6)
    assert torch.equal(model(x), Plain()(x))


def test_without_targets_an_unknown_family_is_answered_with_its_layers():
    with pytest.raises(dsee.InputError, match=r"no default for 'custom' models.*this Plain are called lower, upper"):
        get_peft_model(Plain(), dsee.DseeConfig())


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def masked(linear):
    prune.l1_unstructured(linear, "weight", 0.5)


def halved(linear):
    parametrize.register_parametrization(linear, "weight", Halved())


def weight_normed(linear):
    parametrizations.weight_norm(linear)


@pytest.mark.parametrize("recompute", [masked, halved, weight_normed, torch.nn.utils.spectral_norm])
def test_a_base_whose_weight_is_recomputed_is_refused_by_name(recompute):
    base = tiny_bert()
    recompute(base.bert.encoder.layer[1].attention.self.value)
    with pytest.raises(dsee.InputError, match=r"bert\.encoder\.layer\.1\.attention\.self\.value: .* recomputed"):
        adapted(base)


def test_a_base_pruned_for_good_is_welcome():
    base = tiny_bert()
    for layer in base.bert.encoder.layer:
        masked(layer.attention.self.value)
        prune.remove(layer.attention.self.value, "weight")
    assert torch.equal(logits(adapted(base, init_weights=True)), logits(base))


def test_a_recomputed_weight_elsewhere_does_not_matter():
    base = tiny_bert()
    masked(base.bert.encoder.layer[0].output.dense)
    assert len(covered(adapted(base))) == 6
