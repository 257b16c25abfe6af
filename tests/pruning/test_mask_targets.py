"""Which matrices a mask may fall on: the linears of the layers, and nothing else."""

import pytest
import torch
from mask_models import shared
from torch import nn

import dsee
from conftest import FAMILIES, adapted, tiny_bert
from cut_families import NAMES, build, task_type
from dsee.architectures import layers
from dsee.masks import bare, masked_linears
from dsee.pruning import apply_masks, masks_for
from dsee.pruning.targets import mask_targets
from dsee.pruning.weight_scores import WeightScoreInput, check_weight_score

#: Linears of one layer; of T5's two encoder layers and its decoder layer.
COUNT = dict.fromkeys(FAMILIES, 6) | {"deberta-v3": 6, "deberta-v2": 8, "gpt2": 4}
COUNT |= dict.fromkeys(["llama", "llama with biases", "qwen2", "qwen3", "mistral"], 7)


@pytest.mark.parametrize("name", [*FAMILIES, *NAMES])
def test_they_are_the_linears_of_the_layers(name):
    model = build(name)
    targets = mask_targets(model)
    if name in COUNT:
        assert len(targets) == COUNT[name] * 3
    else:
        own, across = 4, 4
        ffn = 3 if name == "t5 gated" else 2
        assert len(targets) == 2 * (own + ffn) + (own + across + ffn)
    modules = dict(model.named_modules())
    assert all(modules[target.name] is target.linear for target in targets)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    assert not any(id(target.linear.weight) in embedded for target in targets)
    assert not any(part in target.name for target in targets for part in ("pooler", "classifier", "lm_head", "score"))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_they_have_the_same_names_with_an_update_around_them(name):
    plain = [target.name for target in mask_targets(build(name))]
    wrapped = adapted(build(name), task_type=task_type(name), support="random")
    assert [target.name for target in mask_targets(wrapped)] == plain
    assert [t.name for t in mask_targets(wrapped) if t.has_update]
    assert not any("dsee_" in target.name for target in mask_targets(wrapped))


def test_query_and_value_are_known_inside_a_fused_matrix():
    fused = [t.adapted_rows for t in mask_targets(shared("gpt2")) if t.name.endswith("c_attn")]
    assert fused == [((0, 32), (64, 96))] * 3
    rest = [t.adapted_rows for t in mask_targets(shared("gpt2")) if not t.name.endswith("c_attn")]
    assert set(rest) == {()}


PARTS = {"c_attn": ["query", "value"]}


@pytest.mark.parametrize("parts", [PARTS, {}])
def test_the_papers_groups_hold_inside_a_fused_matrix(parts):
    """Query and value are half empty together; so is the key with the rest, or alone where it has an update too."""
    model = adapted(build("gpt2"), task_type="CAUSAL_LM", target_modules=["c_attn"], fused_parts=parts)
    masks = masks_for(model, dsee.Weights(0.5))
    fused = [mask for name, mask in masks.items() if name.endswith("c_attn")]
    rest = [mask for name, mask in masks.items() if not name.endswith("c_attn")]
    keys = [mask[32:64] for mask in fused]
    groups = [[mask[rows] for mask in fused for rows in (slice(0, 32), slice(64, 96))]]
    groups += [keys + rest] if parts else [keys, rest]
    for group in groups:
        assert sum(int(mask.sum()) for mask in group) == sum(mask.numel() for mask in group) // 2


def test_the_part_of_a_fused_matrix_without_an_update_is_scored_by_its_weight():
    model = adapted(build("gpt2"), task_type="CAUSAL_LM", target_modules=["c_attn"], fused_parts=PARTS)
    fused = [target for target in mask_targets(model) if target.has_update]
    scores = check_weight_score("update")(WeightScoreInput(model, fused, 0, None))
    for target in fused:
        assert target.updated_rows == ((0, 32), (64, 96))
        assert not target.delta[32:64].any()
        assert torch.equal(scores[target.name][32:64], target.weight[32:64].abs())
        assert torch.equal(scores[target.name][:32], target.delta[:32].abs())


def test_both_attentions_of_a_decoder_have_queries_and_values():
    names = [t.name.rpartition(".")[2] for t in mask_targets(build("t5")) if t.adapted_rows]
    assert names == ["q", "v"] * 4


def test_modules_trained_in_full_are_left_alone():
    model = adapted(tiny_bert(), modules_to_save=["classifier", "intermediate.dense"])
    assert not any("intermediate" in target.name for target in mask_targets(model))


def test_names_choose_among_them():
    targets = mask_targets(shared("bert"), ["query", "layer.0.output.dense"])
    assert [t.name.removeprefix("bert.encoder.layer.") for t in targets] == [
        "0.attention.self.query",
        "0.output.dense",
        "1.attention.self.query",
        "2.attention.self.query",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["qwery"], r"no matrix that may be masked is called 'qwery'\. Did you mean 'query'"),
        (["classifier"], "no matrix that may be masked is called 'classifier'"),
        (["pooler.dense"], "no matrix that may be masked"),
        ("query", "has to be a list of names"),
        ([], "has to be a list of names"),
    ],
)
def test_names_that_fit_nothing_are_refused(names, message):
    with pytest.raises(dsee.InputError, match=message):
        mask_targets(tiny_bert(), names)


class Unmapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.body, self.out = nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.out.weight = self.embed.weight


def test_a_model_without_a_map_needs_names():
    with pytest.raises(dsee.ArchitectureError, match=r"no architecture map.*if you name the matrices: dsee.Weights"):
        masks_for(Unmapped(), dsee.Weights(0.5, score="weight"))
    masks = masks_for(Unmapped(), dsee.Weights(0.5, score="weight", targets=["body"]))
    assert int(masks["body"].sum()) == 32


def test_a_matrix_that_is_an_embedding_too_is_never_masked():
    with pytest.raises(dsee.InputError, match="no matrix that may be masked is called 'out'"):
        masks_for(Unmapped(), dsee.Weights(0.5, score="weight", targets=["out"]))


def test_a_weight_that_is_recomputed_is_refused_by_name():
    from torch.nn.utils import prune

    model = tiny_bert()
    prune.random_unstructured(model.bert.encoder.layer[1].output.dense, "weight", 0.1)
    with pytest.raises(dsee.InputError, match=r"layer\.1\.output\.dense: its weight is recomputed"):
        masks_for(model, dsee.Weights(0.5, score="weight"))


def test_a_quantised_weight_is_refused_by_name():
    model = tiny_bert()
    linear = model.bert.encoder.layer[1].output.dense
    linear.weight = nn.Parameter(torch.ones(linear.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        dsee.ArchitectureError, match=r"layer\.1\.output\.dense: a Linear with a quantised weight .torch.int8."
    ):
        masks_for(model, dsee.Weights(0.5, score="weight"))


def test_masks_for_decides_and_apply_masks_acts():
    model = tiny_bert()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    masks = masks_for(model, dsee.Weights(0.5, score="weight"))
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert not masked_linears(model)
    apply_masks(model, masks)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(state[n], t)}
    assert changed == {f"{name}.weight" for name in masks}
    assert all(
        torch.equal(
            bare(view.part("query")).weight != 0, masks[f"bert.encoder.layer.{view.index}.attention.self.query"]
        )
        for view in layers(model)
    )


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"bert.encoder.layer.0.output.dense": torch.ones(2, 2, dtype=torch.bool)}, r"a mask of \(2, 2\) does not fit"),
        ({"bert.nowhere": torch.ones(2, 2, dtype=torch.bool)}, "no matrix that may be masked is called"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(masks, message):
    model = tiny_bert()
    fitting = masks_for(model, dsee.Weights(0.5, score="weight"))
    with pytest.raises(dsee.InputError, match=message):
        apply_masks(model, fitting | masks)
    assert not masked_linears(model)


def test_a_merged_update_is_refused():
    model = adapted(tiny_bert())
    masks = masks_for(model, dsee.Weights(0.5))
    model.merge_adapter()
    for call in (lambda: masks_for(model, dsee.Weights(0.5)), lambda: apply_masks(model, masks)):
        with pytest.raises(dsee.OrderError, match="merged"):
            call()
