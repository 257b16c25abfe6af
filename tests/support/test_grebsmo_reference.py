"""The published reading: its rank limit, its threshold, its passes, and its loop as the oracle."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from dsee import support

# the package's attribute of that name is the function
module = importlib.import_module("dsee.support.grebsmo_reference")
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def published(monkeypatch):
    """The loop as the authors have it; it lives beside the benchmark that times it."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("reference_loop").reference_as_published


def matrix(rows, columns, seed=0):
    """A decaying spectrum with heavy tails, scaled so that the threshold of 0.01 lies within the residual."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.linspace(1, 0.1, columns)
    weight = weight + 0.3 * torch.randn(rows, columns, generator=generator).pow(3)
    return 0.03 * weight / weight.std()


def loss(residual):
    """0.5 ||W - UV - S||^2 + 0.5 t^2 card(S) with the best S: what alternating with a hard threshold t minimises."""
    return float(0.5 * residual.double().square().clamp_max(module.THRESHOLD**2).sum())


@pytest.mark.parametrize(("rows", "columns"), [(24, 30), (30, 24), (48, 40)])
def test_the_rank_is_the_same_share_of_the_full_rank_as_in_bert(rows, columns, monkeypatch):
    ranks, real = [], torch.linalg.qr

    def qr(a):
        ranks.append(a.shape[1])
        return real(a)

    monkeypatch.setattr(torch.linalg, "qr", qr)
    support.choose("grebsmo-reference", matrix(rows, columns), 5, rank=8, seed=0)
    assert ranks[-module.PASSES :] == [int(496 / 768 * min(rows, columns))] * module.PASSES
    assert max(ranks) == ranks[-1] < min(rows, columns)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_at_least_as_good_as_the_published_loops(seed, published):
    weight, n = matrix(96, 96, seed), 40
    ours, theirs = support.grebsmo_reference(weight, n, 8, torch.Generator()), published(weight, seed).abs()
    assert loss(ours) <= loss(theirs)
    assert float(ours.reshape(-1).topk(n).values.sum()) >= 0.999 * float(theirs.reshape(-1).topk(n).values.sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_support_resembles_those_of_the_published_loop(seed, published):
    weight, n = matrix(96, 96, seed), 40
    ours = support.choose("grebsmo-reference", weight, n, rank=8, seed=0)
    loops = [support.top_n(published(weight, s).abs(), n) for s in (0, 1, 2)]
    shared = [float(torch.isin(a, b).float().mean()) for i, a in enumerate(loops) for b in loops[:i]]
    mean = sum(float(torch.isin(ours, loop).float().mean()) for loop in loops) / len(loops)
    assert mean >= 0.5 * min(shared)
    assert mean > 10 * n / weight.numel(), "far from chance"


def test_the_threshold_is_published_and_matters(monkeypatch):
    weight = matrix(60, 60)
    expected = support.choose("grebsmo-reference", weight, 40, rank=8, seed=0)
    assert module.THRESHOLD == 0.01
    monkeypatch.setattr(module, "THRESHOLD", 10.0)
    assert not torch.equal(expected, support.choose("grebsmo-reference", weight, 40, rank=8, seed=0))


def test_there_are_exactly_n_positions_even_when_fewer_exceed_the_threshold():
    # everything lies below the published threshold of 0.01, so the published mask would be all ones
    weight = 1e-3 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    positions = support.choose("grebsmo-reference", weight, 7, rank=8, seed=0)
    assert positions.shape == (7,)
    assert positions.unique().numel() == 7


def test_the_rank_of_the_update_does_not_matter():
    weight = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    first, second = (support.choose("grebsmo-reference", weight, 20, rank=rank, seed=0) for rank in (2, 16))
    assert torch.equal(first, second)
