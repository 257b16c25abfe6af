"""How many weights go, and which: exactly the ratio, never a whole matrix, valid blocks and groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_models import FREE, matrix, shared, weights_of, zeros

import dsee
from dsee.pruning import masks_for
from dsee.pruning.blocks import block_sums
from dsee.pruning.weight_scores import _WEIGHT_SCORES

RATIOS = st.floats(0.01, 0.99)
MODELS = st.sampled_from(["bert", "ragged", "gpt2"])
SCOPES = st.sampled_from(["global", "layer"])


def wanted(ratio, count):
    return math.floor(ratio * count + 0.5)


@settings(max_examples=15, deadline=None)
@given(MODELS, RATIOS, st.sampled_from(FREE), SCOPES)
def test_single_weights_meet_the_ratio_exactly(name, ratio, score, scope):
    masks = masks_for(shared(name), dsee.Weights(ratio, score=score, scope=scope))
    assert {n: m.shape for n, m in masks.items()} == {n: w.shape for n, w in weights_of(shared(name)).items()}
    if scope == "layer":
        assert all(zeros(mask) == wanted(ratio, mask.numel()) for mask in masks.values())
    else:
        total = sum(mask.numel() for mask in masks.values())
        assert sum(zeros(mask) for mask in masks.values()) == wanted(ratio, total)


@settings(max_examples=10, deadline=None)
@given(RATIOS)
def test_the_papers_groups_each_meet_the_ratio(ratio):
    masks = masks_for(shared("bert"), dsee.Weights(ratio))
    adapted = {n: m for n, m in masks.items() if n.endswith(("query", "value"))}
    rest = {n: m for n, m in masks.items() if n not in adapted}
    assert (len(adapted), len(rest)) == (6, 12)
    for group in (adapted, rest):
        total = sum(mask.numel() for mask in group.values())
        assert sum(zeros(mask) for mask in group.values()) == wanted(ratio, total)


def test_one_group_on_request_ranks_updates_and_weights_together():
    model = shared("bert")
    masks = masks_for(model, dsee.Weights(0.5, groups="one", floor=0.0))
    # the update is much smaller than the weights, which is why the paper keeps them apart
    share = {n: zeros(m) / m.numel() for n, m in masks.items()}
    adapted = {n for n in share if n.endswith(("query", "value"))}
    assert min(share[n] for n in adapted) > max(share[n] for n in set(share) - adapted)
    assert sum(zeros(m) for m in masks.values()) == wanted(0.5, sum(m.numel() for m in masks.values()))


@settings(max_examples=20, deadline=None)
@given(RATIOS, st.floats(0.0, 1.0))
def test_no_matrix_falls_below_the_floor(ratio, share):
    floor = share * (1.0 - ratio)
    for mask in masks_for(shared("ragged"), dsee.Weights(ratio, score="weight", floor=floor)).values():
        # where the floor is all that the ratio leaves, the ratio rounds
        least = min(math.ceil(floor * mask.numel()), mask.numel() - math.ceil(ratio * mask.numel()))
        assert int(mask.sum()) >= least


@pytest.fixture
def one_matrix_lowest(monkeypatch):
    """A score by which the first matrix would go as a whole; its name."""
    first = next(iter(weights_of(shared("bert"))))
    monkeypatch.setitem(
        _WEIGHT_SCORES,
        "first last",
        lambda given: {t.name: torch.rand(t.shape) + float(t.name != first) for t in given.targets},
    )
    return first


@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.05), (0.9, 0.05), (0.98, 0.01)])
def test_the_floor_is_five_percent_or_half_of_what_the_ratio_leaves(one_matrix_lowest, ratio, share):
    mask = masks_for(shared("bert"), dsee.Weights(ratio, score="first last"))[one_matrix_lowest]
    assert int(mask.sum()) == math.ceil(share * mask.numel())


def test_the_floor_can_be_taken_away_and_raised(one_matrix_lowest):
    def kept(floor):
        rule = dsee.Weights(0.5, score="first last", floor=floor)
        return masks_for(shared("bert"), rule)[one_matrix_lowest].float().mean().item()

    assert kept(0.0) == 0.0
    assert kept(0.25) == 0.25
    assert kept(0.5) == 0.5


@settings(max_examples=20, deadline=None)
@given(MODELS, st.floats(0.01, 0.9), SCOPES, st.tuples(st.integers(1, 6), st.integers(1, 6)), st.sampled_from(FREE))
def test_blocks_go_whole_and_meet_the_ratio_within_one(name, ratio, scope, shape, score):
    masks = masks_for(shared(name), dsee.Blocks(ratio, shape=shape, score=score, scope=scope))
    for mask in masks.values():
        kept = block_sums(mask.to(torch.int32), shape)
        full = block_sums(torch.ones_like(mask, dtype=torch.int32), shape)
        assert bool(((kept == 0) | (kept == full)).all())
        assert mask.any()
    pools = [[mask] for mask in masks.values()] if scope == "layer" else [list(masks.values())]
    for pool in pools:
        total = sum(mask.numel() for mask in pool)
        # strictly less than a block away
        assert abs(sum(zeros(mask) for mask in pool) - ratio * total) <= shape[0] * shape[1]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_blocks_that_fit_meet_the_ratio_as_exactly_as_blocks_can(ratio):
    for name in ("bert", "gpt2"):
        masks = masks_for(shared(name), dsee.Blocks(ratio, score="weight"))
        total = sum(mask.numel() for mask in masks.values())
        assert sum(zeros(mask) for mask in masks.values()) == 4 * wanted(ratio, total // 4)


def test_the_blocks_with_the_smallest_sums_go():
    weight = torch.tensor([[1.0, 9.0], [1.0, -9.0], [5.0, 1.0], [5.0, -1.0], [0.0, 8.0], [2.0, 8.0]])
    rule = dsee.Blocks(0.5, shape=(2, 1), score="weight", targets=["linear"], floor=0.0)
    mask = masks_for(matrix(weight), rule)["linear"]
    assert mask.tolist() == [[False, True], [False, True], [True, False], [True, False], [False, True], [False, True]]


def test_smaller_blocks_at_the_edge_are_ranked_as_if_they_were_full():
    weight = torch.tensor([[4.0], [4.0], [3.0]])
    rule = dsee.Blocks(0.4, shape=(2, 1), score="weight", targets=["linear"], floor=0.0)
    # by its own sum, 3, the last block would be far below the first one's 8; as a full one it is 6, and still goes
    assert masks_for(matrix(weight), rule)["linear"].tolist() == [[True], [True], [False]]
    weight[2] = 5.0
    assert masks_for(matrix(weight), rule)["linear"].tolist() == [[False], [False], [True]]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (5, 8), (1, 16), (31, 32)]), st.sampled_from(FREE))
def test_n_of_m_keeps_exactly_n_of_each_m_inputs(pair, score):
    n, m = pair
    rule = dsee.NofM(n, m, score=score, targets=["query", "key", "value", "intermediate.dense"])
    for mask in masks_for(shared("bert"), rule).values():
        assert bool((mask.view(mask.shape[0], -1, m).sum(2) == n).all())


def test_n_of_m_keeps_the_best_of_each_group():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 7.0, 7.0, 7.0, 7.0]])
    mask = masks_for(matrix(weight), dsee.NofM(2, 4, score="weight", targets=["linear"]))["linear"]
    # among equals the first ones go
    assert mask.tolist() == [[False, True, True, False, False, False, True, True]]


@pytest.mark.parametrize("rule", [dsee.Weights(0.5, score="weight"), dsee.Blocks(0.5, score="weight")])
def test_masks_are_the_same_for_conv1d_and_linear(rule):
    """GPT-2's Conv1D stores (in, out); a Linear of the same map has to be masked at the same places."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from dsee.pruning import apply_masks

    torch.manual_seed(0)
    plain, turned = nn.Module(), nn.Module()
    plain.linear, turned.linear = nn.Linear(12, 8), Conv1D(8, 12)
    with torch.no_grad():
        turned.linear.weight.copy_(plain.linear.weight.T)
    for each in (rule, dsee.NofM(1, 4, score="weight")):
        named = {"score": "weight", "targets": ["linear"]}
        own = type(each)(**{k: v for k, v in each.facts().items() if k != "rule"} | named)
        masks = [masks_for(model, own)["linear"] for model in (plain, turned)]
        assert masks[0].shape == (8, 12)
        assert torch.equal(*masks)
    for model, mask in zip((plain, turned), masks, strict=True):
        apply_masks(model, {"linear": mask})
    assert torch.equal(plain.linear.weight, turned.linear.weight.T)
    assert torch.equal(plain.linear.weight == 0, ~masks[0])


@settings(max_examples=8, deadline=None)
@given(st.lists(RATIOS, min_size=2, max_size=4), SCOPES, st.sampled_from(["weights", "blocks"]))
def test_masks_only_grow(ratios, scope, kind):
    from copy import deepcopy

    from dsee.pruning import apply_masks

    model, before = deepcopy(shared("ragged")), None
    for i, ratio in enumerate(sorted(ratios)):
        # another score each time: what is masked stays so whatever it says
        common = {"score": "random", "seed": i, "scope": scope, "floor": 0.0}
        rule = dsee.Weights(ratio, **common) if kind == "weights" else dsee.Blocks(ratio, **common)
        masks = masks_for(model, rule)
        apply_masks(model, masks)
        total = sum(mask.numel() for mask in masks.values())
        slack = 0 if kind == "weights" else 4 * (len(masks) if scope == "layer" else 1)
        off = abs(sum(zeros(mask) for mask in masks.values()) - ratio * total)
        assert off <= max(slack, 0.5 * (len(masks) if scope == "layer" else 1) + 1e-6)
        if before is not None:
            assert all(not bool((masks[name] & ~before[name]).any()) for name in masks)
        before = masks


def test_n_of_m_on_top_of_single_weights_counts_what_is_gone():
    weight = torch.tensor([[9.0, 8.0, 1.0, 2.0, 1.0, 2.0, 3.0, 4.0]])
    model = matrix(weight)
    gone = torch.tensor([[False, True, True, True, False, False, False, True]])
    dsee.pruning.apply_masks(model, {"linear": gone})
    mask = masks_for(model, dsee.NofM(2, 4, score="weight", targets=["linear"]))["linear"]
    assert mask.tolist() == [[False, True, False, True, False, False, False, True]]
