"""What pruning does in every family: cuts, masks, recovery, merging and files."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest
import torch

import dsee
from behaviours.families import Family
from behaviours.update_behaviours import close, step
from dsee.masks import get_mask, masked_linears, oriented

RULES = {
    "weights": dsee.Weights(0.5),
    "weights by weight+update": dsee.Weights(0.7, score="weight+update", scope="layer"),
    "weights by fisher": dsee.Weights(0.5, score="fisher"),
    "weights by wanda": dsee.Weights(0.5, score="wanda"),
    "blocks": dsee.Blocks(0.5, score="weight+update"),
    "2:4": dsee.NofM(2, 4, score="weight"),
}
SCORES = ["weight", "weight+update", "taylor", "random"]


def zeros(model: Any) -> dict[str, torch.Tensor]:
    """Where the masked matrices are zero, (out, in)."""
    return {name.replace(".base_layer", ""): oriented(m) == 0 for name, m in masked_linears(model).items()}


def from_disk(folder: Any) -> Any:
    """The loaded model, its weights copied to fresh memory: products of memory-mapped ones may round differently."""
    loaded = dsee.load(folder).eval()
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()
    return loaded


class PruneBehaviours:
    """Inherit and set ``family``."""

    family: ClassVar[Family]
    #: whether its heads can be cut
    heads = True

    def cuts(self, score: str) -> list[Any]:
        """A quarter of the neurons and, where they can go, half of the heads."""
        rules: list[Any] = [dsee.Neurons(0.25, score=score)]
        return [dsee.Heads(0.5, score=score), *rules] if self.heads else rules

    def pruned(self, *rules: Any) -> Any:
        model = self.family.adapted()
        dsee.prune(model, *rules, calibration=[self.family.batch(labels=True)])
        return model

    @pytest.mark.parametrize("score", SCORES)
    def test_cut_models_are_smaller_and_train(self, score):
        model = self.pruned(*self.cuts(score))
        now, was = dsee.flops(model, 1, 16), dsee.flops(self.family.adapted(), 1, 16)
        assert now.encoder < was.encoder
        step(model.train(), self.family.batch(labels=True))
        assert all(torch.isfinite(p).all() for p in model.parameters())

    def test_a_cut_model_merges_to_the_same_logits_and_comes_back_from_disk(self, tmp_path):
        model = self.pruned(*self.cuts("taylor"))
        expected = self.family.logits(model)
        plain = dsee.merge(model)
        close(self.family.logits(plain), expected)
        merged = self.family.logits(plain)
        dsee.save(plain, tmp_path / "small")
        loaded = from_disk(tmp_path / "small")
        assert torch.equal(self.family.logits(loaded), merged)
        assert dsee.history(loaded) == dsee.history(plain)

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_masked_zeros_stay_zero_through_training_and_merging(self, rule):
        model = self.pruned(rule)
        before = zeros(model)
        assert before
        step(model.train(), self.family.batch(labels=True))
        assert all(torch.equal(before[name], now) for name, now in zeros(model).items())
        model.eval()
        with warnings.catch_warnings():
            # merging says what it dropped of the update at the zeros; other tests look at that
            warnings.filterwarnings("ignore", message="merge: every zero kept")
            plain = dsee.merge(model, policy="masked")
        for name, linear in masked_linears(plain).items():
            mask = get_mask(linear)
            assert mask is not None
            assert (oriented(linear)[~mask] == 0).all(), name

    def test_two_of_four_and_blocks_have_their_patterns(self):
        groups = zeros(self.pruned(RULES["2:4"]))
        assert all((mask.view(mask.shape[0], -1, 4).sum(2) == 2).all() for mask in groups.values())
        blocks = zeros(self.pruned(RULES["blocks"])).values()
        assert all((mask.view(-1, 4, mask.shape[1]).sum(1) % 4 == 0).all() for mask in blocks)

    def test_a_cut_and_a_mask_together_come_back_from_disk(self, tmp_path):
        model = self.pruned(*self.cuts("weight"), dsee.Weights(0.5, score="weight"))
        expected = self.family.logits(model)
        dsee.save(model, tmp_path / "adapted")
        loaded = from_disk(tmp_path / "adapted")
        assert torch.equal(self.family.logits(loaded), expected)
        theirs = masked_linears(loaded)
        for name, linear in masked_linears(model).items():
            assert torch.equal(get_mask(theirs[name]), get_mask(linear))
