"""What a removed part adds whatever the input stays in the output's bias, where that is exact, and only there."""

import pytest
import torch
from mask_oracle import ALL_LINEARS, strong, weight, zeroed

import dsee
from conftest import FAMILIES
from cut_families import answer, build
from dsee.architectures import layers
from dsee.masks import get_mask, set_mask
from dsee.pruning import LayerPlan
from dsee.surgery import cut

BIASED = [*sorted(FAMILIES), "deberta-v2", "gpt2", "llama with biases"]
NEURONS = LayerPlan(neurons=(0, 3, 39))
HEADS = LayerPlan(heads=(1, 3))
NOTHING = LayerPlan()


def model_with_silent_parts(name, dtype=torch.float64):
    """Neurons 0, 3, 39 of layer 0 and the values of heads 1, 3 of layer 1 read nothing; their biases remain."""
    model = build(name).to(dtype)
    first, second = layers(model)[:2]
    with torch.no_grad():
        for part in first.names("neurons"):
            first.matrix(part)[list(NEURONS.neurons)] = 0.0
        for head in HEADS.heads:
            second.matrix("value")[head * 8 : head * 8 + 8] = 0.0
    return model


PLAN = [NEURONS, HEADS, NOTHING]


@pytest.mark.parametrize("name", BIASED)
def test_removing_what_reads_nothing_changes_no_logit(name):
    model = model_with_silent_parts(name)
    before, masked = answer(model, name), answer(zeroed(model, PLAN), name)
    assert (before - masked).abs().max() > 1e-3
    cut(model, PLAN)
    torch.testing.assert_close(answer(model, name), before, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "qwen3", "t5 gated"])
def test_without_biases_there_is_nothing_to_fold(name):
    plan = [NEURONS, NOTHING, NOTHING]
    model = model_with_silent_parts(name)
    before = answer(model, name)
    cut(model, plan)
    torch.testing.assert_close(answer(model, name), before, rtol=0.0, atol=1e-10)


def test_without_an_output_bias_the_cut_is_the_mask():
    model = model_with_silent_parts("qwen2")
    masked = zeroed(model, PLAN)
    cut(model, PLAN)
    torch.testing.assert_close(answer(model, "qwen2"), answer(masked, "qwen2"), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("gate", [True, False])
def test_a_gated_neuron_is_constant_only_if_both_sides_are(gate):
    name = "llama with biases"
    model = build(name).double()
    with torch.no_grad():
        layers(model)[0].matrix("gate" if gate else "ffn_in")[list(NEURONS.neurons)] = 0.0
    masked = zeroed(model, [NEURONS, NOTHING, NOTHING])
    cut(model, [NEURONS, NOTHING, NOTHING])
    torch.testing.assert_close(answer(model, name), answer(masked, name), rtol=0.0, atol=1e-10)


def test_one_weight_that_reads_something_is_enough():
    model = model_with_silent_parts("bert")
    with torch.no_grad():
        layers(model)[0].matrix("ffn_in")[3, 5] = 0.5
        layers(model)[1].matrix("value")[9, 5] = 0.5
    masked = zeroed(model, [LayerPlan(neurons=(3,)), LayerPlan(heads=(1,)), NOTHING])
    cut(model, [LayerPlan(neurons=(3,)), LayerPlan(heads=(1,)), NOTHING])
    torch.testing.assert_close(answer(model, "bert"), answer(masked, "bert"), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("targets", [r".*(value|intermediate\.dense)", r".*output\.dense"], ids=["rows", "columns"])
def test_an_update_there_leaves_the_mask(targets):
    model = strong(model_with_silent_parts("bert", torch.float32), target_modules=targets).double()
    masked = zeroed(model, PLAN)
    cut(model, PLAN)
    torch.testing.assert_close(answer(model, "bert"), answer(masked, "bert"), rtol=0.0, atol=1e-10)


def test_an_update_elsewhere_does_not_hinder():
    model = strong(model_with_silent_parts("bert", torch.float32), target_modules=["query", "key"]).double()
    before = answer(model, "bert")
    cut(model, PLAN)
    torch.testing.assert_close(answer(model, "bert"), before, rtol=0.0, atol=1e-10)


def test_a_bias_keeps_its_place_and_its_flag():
    model = model_with_silent_parts("bert")
    bias = layers(model)[0].part("ffn_out").bias.requires_grad_(False)
    was = bias.clone()
    cut(model, PLAN)
    assert layers(model)[0].part("ffn_out").bias is bias
    assert not bias.requires_grad
    assert not bias.equal(was)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_mask_of_single_weights_is_cut_with_its_weight(name):
    model = build(name)
    generator = torch.Generator().manual_seed(3)
    for view in layers(model):
        for linear in [*view.linears("heads").values(), *view.linears("neurons").values()]:
            set_mask(linear, torch.rand(weight(linear).shape, generator=generator) > 0.5)
            with torch.no_grad():
                # a kept weight may happen to be zero, which the mask alone tells from a removed one
                weight(linear)[tuple(get_mask(linear).nonzero()[0].tolist())] = 0.0
    plan = [LayerPlan((1,), (2, 4)), LayerPlan((0, 3), tuple(range(20))), NOTHING]
    masked = zeroed(model, plan)
    kept = [
        int(get_mask(view.part("output"))[:, columns(view, p)].sum())
        for view, p in zip(layers(model), plan, strict=True)
    ]
    cut(model, plan)
    torch.testing.assert_close(answer(model, name), answer(masked, name), rtol=0.0, atol=1e-5)
    for view in layers(model):
        for linear in [*view.linears("heads").values(), *view.linears("neurons").values()]:
            mask = get_mask(linear)
            assert mask.shape == weight(linear).shape
            assert not weight(linear)[~mask].any()
    assert [int(get_mask(view.part("output")).sum()) for view in layers(model)] == kept


def columns(view, layer_plan):
    wide = view.width("output")
    return [head * wide + i for head in range(view.heads) if head not in layer_plan.heads for i in range(wide)]


def test_pruning_folds_too():
    model = model_with_silent_parts("bert")
    before = answer(model, "bert")
    dsee.prune(model, dsee.Neurons(explicit={0: NEURONS.neurons}), dsee.Heads(explicit={1: HEADS.heads}))
    torch.testing.assert_close(answer(model, "bert"), before, rtol=0.0, atol=1e-10)


def test_a_fresh_update_on_what_is_cut_is_no_hindrance():
    base = model_with_silent_parts("bert", torch.float32)
    before = answer(base, "bert")
    model = strong(base, target_modules=ALL_LINEARS)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "dsee_" in key:
                parameter.zero_()
    cut(model, PLAN)
    torch.testing.assert_close(answer(model, "bert"), before, rtol=0.0, atol=1e-5)
