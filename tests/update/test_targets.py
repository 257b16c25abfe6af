"""Which layers carry an update, and what is refused."""

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import tiny_gpt2


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
    with pytest.raises(dsee.InputError, match=r"Embedding.*Linear or Conv1D"):
        adapted(tiny_bert(), target_modules=["word_embeddings"])


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
