"""The best approximation of a rank, against torch's singular value decomposition, for every way it is computed."""

import pytest
import torch

from dsee import support
from dsee.support import _low_rank


def truncated(weight, rank):
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def decaying(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, k, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, k, generator=generator)).Q
    return (left * torch.linspace(3, 0.05, k)) @ right.T


def error(weight, approximation, rank):
    """Largest difference from the truncated decomposition, as a share of the largest entry of W."""
    return float((approximation.double() - truncated(weight, rank)).abs().max() / weight.abs().max())


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (30, 50), (50, 30), (1, 9), (9, 1)])
@pytest.mark.parametrize("rank", [0, 1, 5, 29, 200])
def test_the_approximation_is_that_of_the_decomposition(rows, columns, rank):
    weight = decaying(rows, columns)
    assert error(weight, _low_rank.low_rank(weight, rank, torch.Generator()), min(rank, rows, columns)) < 1e-5


@pytest.mark.parametrize(("rows", "columns"), [(160, 160), (120, 200), (200, 120)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_krylov_iteration_of_large_matrices_agrees(rows, columns, seed, monkeypatch):
    monkeypatch.setattr(_low_rank, "ALL_EIGENVECTORS", 64)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    weight = decaying(rows, columns)
    assert error(weight, _low_rank.low_rank(weight, 6, torch.Generator().manual_seed(seed)), 6) < 1e-4


def test_a_krylov_iteration_that_does_not_settle_gives_way_to_the_eigenvectors(monkeypatch):
    monkeypatch.setattr(_low_rank, "ALL_EIGENVECTORS", 64)
    monkeypatch.setattr(_low_rank, "RESTARTS", 1)
    monkeypatch.setattr(_low_rank, "DEPTH", 1)
    weight = decaying(120, 120)
    assert error(weight, _low_rank.low_rank(weight, 6, torch.Generator().manual_seed(0)), 6) < 1e-5


@pytest.mark.parametrize("size", [40, 160])
def test_no_weight_at_all_is_its_own_approximation(size, monkeypatch):
    monkeypatch.setattr(_low_rank, "ALL_EIGENVECTORS", 64)
    weight = torch.zeros(size, size)
    assert torch.equal(_low_rank.low_rank(weight, 3, torch.Generator().manual_seed(0)), weight)


@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (50, 30)])
@pytest.mark.parametrize("rank", [1, 6])
def test_residual_is_the_largest_of_what_the_decomposition_leaves(shape, rank):
    weight, n = decaying(*shape), 30
    left = (weight.double() - truncated(weight, rank)).abs().reshape(-1)
    chosen = support.choose("residual", weight, n, rank=rank, seed=0)
    # positions whose residuals agree within rounding may change places
    threshold = left.topk(n).values[-1]
    assert bool((left[chosen] >= threshold - 1e-5).all())
    assert set(torch.nonzero(left > threshold + 1e-5).reshape(-1).tolist()) <= set(chosen.tolist())


def test_residual_without_a_rank_is_magnitude():
    weight = decaying(30, 20)
    first, second = (support.choose(rule, weight, 17, rank=0, seed=0) for rule in ("residual", "magnitude"))
    assert torch.equal(first, second)
