"""The random rule is uniform over the matrix and blind to its values."""

import torch

from dsee import support


def test_each_position_is_drawn_equally_often():
    draws, n, numel = 2000, 6, 24
    weight = torch.zeros(4, 6)
    counts = torch.zeros(numel)
    for seed in range(draws):
        counts[support.choose("random", weight, n, rank=0, seed=seed)] += 1
    share = n / numel
    deviation = (draws * share * (1 - share)) ** 0.5
    # 24 positions within 4.5 standard deviations each: a fair draw fails once in 6,000 sets of seeds; these are fixed
    assert float((counts - draws * share).abs().max()) < 4.5 * deviation


def test_the_values_of_the_matrix_do_not_matter():
    zeros, normal = torch.zeros(9, 9), torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    first, second = (support.choose("random", w, 10, rank=0, seed=5) for w in (zeros, normal))
    assert torch.equal(first, second)
