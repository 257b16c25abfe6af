"""Cases and the dense oracle for the sparse product."""

import torch
from hypothesis import settings

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=60)


def case(lead, out_features, in_features, n, *, dtype=torch.float32, seed=0):
    """Random y, x and S2 with n distinct positions: (y, x, values, indices)."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(out_features * in_features, generator=generator)[:n]
    y = torch.randn(*lead, out_features, generator=generator).to(dtype)
    x = torch.randn(*lead, in_features, generator=generator).to(dtype)
    values = torch.randn(n, generator=generator).to(dtype)
    return y, x, values, flat


def dense(values, indices, out_features, in_features):
    """S2 as a matrix, differentiable in its values; entries at one place add up."""
    flat = values.new_zeros(out_features * in_features)
    return flat.index_put((indices.long(),), values, accumulate=True).view(out_features, in_features)


def oracle(y, x, values, indices):
    """y + x S2^T by the dense product."""
    return y + x @ dense(values, indices, y.shape[-1], x.shape[-1]).T


def tolerance(dtype, terms, scale=1.0):
    """Bound of the rounding error of a sum of ``terms`` products of size ``scale``, in either order of summation."""
    return {"rtol": 0.0, "atol": 4 * (terms + 1) * scale * torch.finfo(dtype).eps}
