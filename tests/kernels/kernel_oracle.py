"""What the kernels have to equal, and how closely."""

import pytest
import torch
from torch.nn import functional

from dsee.kernels import library
from dsee.kernels.product import activate

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
KINDS = ("blocks", "weights")
PATHS = library().paths if library() else []


def sparse_weight(rows, columns, zeros, kind, generator):
    """Random values; zeros in whole blocks of four rows for "blocks"."""
    groups = -(-rows // 4) if kind == "blocks" else rows
    kept = torch.rand(groups, columns, generator=generator) >= zeros
    kept = kept.repeat_interleave(4, 0)[:rows] if kind == "blocks" else kept
    return torch.randn(rows, columns, generator=generator) * kept


def expected(x, weight, bias=None, u=None, v=None, activation=None):
    """The dense product in double precision, and the most that single precision may differ from it.

    A sum of n products in any order is off by at most n eps times the sum of their sizes (Higham 2002, 3.1); the
    activation functions here change no difference by more than 1.13 and add a few roundings of their own.
    """
    x, weight = x.double(), weight.double()
    y, size = functional.linear(x, weight), functional.linear(x.abs(), weight.abs())
    terms = weight.shape[1] + 2
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    if u is not None:
        y = y + functional.linear(functional.linear(x, v.double()), u.double())
        size = size + functional.linear(functional.linear(x.abs(), v.double().abs()), u.double().abs())
        terms += v.shape[0]
    found = activate(y, activation)
    return found, 1.13 * terms * torch.finfo(torch.float32).eps * size + 4e-7 * (1 + found.abs())


def assert_equals_oracle(found, oracle):
    want, most = oracle
    assert found.dtype == torch.float32
    assert found.shape == want.shape
    assert bool(((found - want).abs() <= most).all()), ((found - want).abs() / most).max()
