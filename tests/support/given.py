"""What the tests of the rules share."""

import torch

from dsee import support


def choose(rule, weight, n, *, rank=4, seed=0, mask=None):
    """Any rule: one that looks at gradients gets some, drawn for the shape."""
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(99)).abs()
    gradient = gradient if support.needs_gradient(rule) else None
    return support.choose(rule, weight, n, rank=rank, seed=seed, gradient=gradient, mask=mask)
