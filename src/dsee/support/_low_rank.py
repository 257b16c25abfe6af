"""The best approximation of W of a given rank, where the decomposing rules start."""

from __future__ import annotations

import torch

#: Up to this size, or for more than a quarter of the full rank, all eigenvectors are computed: 0.3 s for 1024 x 1024.
ALL_EIGENVECTORS = 1024
#: Beyond it a block Krylov space is searched: directions beside the wanted ones, products with W^T W, restarts.
SPARE, DEPTH, RESTARTS = 8, 8, 12
#: A direction v is found when |W^T W v - l v| is below this share of the largest eigenvalue, near fp32's own error.
TOLERANCE = 2e-6


def leading_rows(weight: torch.Tensor, rank: int, generator: torch.Generator) -> torch.Tensor:
    """Return V of the best rank-r approximation ``W_r = (W V^T) V`` (Eckart and Young): W's leading right vectors.

    Eigenvectors of the smaller Gram matrix in fp64, whose error in W_r is below fp32's; no random choice enters. Wide
    and tall matrices above ``ALL_EIGENVECTORS`` get a block Krylov iteration instead, which runs until it agrees with
    the eigenvectors within rounding, and falls back to them if it does not get there.

    Args:
        weight: W, shape (out, in), fp32.
        rank: r, at most min(out, in); the rows are those of the largest singular values.
        generator: decides where the Krylov iteration starts.

    Returns:
        fp32, shape (r, in), orthonormal rows.
    """
    if min(weight.shape) > ALL_EIGENVECTORS and 4 * rank < min(weight.shape):
        found = _krylov(weight, rank, generator)
        if found is not None:
            return found
    exact = weight.double()
    if weight.shape[1] <= weight.shape[0]:
        right: torch.Tensor = torch.linalg.eigh(exact.T @ exact).eigenvectors[:, weight.shape[1] - rank :]
    else:
        left = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, weight.shape[0] - rank :]
        # from left to right vectors: W^T u, made orthonormal also where a singular value is zero
        right = torch.linalg.qr((exact.T @ left).flip(1)).Q
    return right.T.to(weight.dtype)


def _krylov(weight: torch.Tensor, rank: int, generator: torch.Generator) -> torch.Tensor | None:
    """Leading right vectors, or None where they do not settle."""
    block: torch.Tensor = torch.randn(weight.shape[1], rank + SPARE, generator=generator)
    for _ in range(RESTARTS):
        block = torch.linalg.qr(block).Q
        blocks = [block]
        for _ in range(DEPTH):
            block = torch.linalg.qr(weight.T @ (weight @ block)).Q
            blocks.append(block)
        basis = torch.linalg.qr(torch.cat(blocks, 1)).Q
        _, sizes, rotation = torch.linalg.svd(weight @ basis, full_matrices=False)
        block = basis @ rotation[: rank + SPARE].T
        right = block[:, :rank]
        error = weight.T @ (weight @ right) - right * sizes[:rank].square()
        if float(error.norm(dim=0).max()) <= TOLERANCE * float(sizes[0].square()):
            return right.T.contiguous()
    return None


def low_rank(weight: torch.Tensor, rank: int, generator: torch.Generator) -> torch.Tensor:
    """Return W_r, the best approximation of W of rank r at most.

    Args:
        weight: W, shape (out, in), fp32.
        rank: r, 0 or more.
        generator: see :func:`leading_rows`.

    Returns:
        fp32, shape (out, in).
    """
    rank = min(rank, *weight.shape)
    if rank == 0:
        return torch.zeros_like(weight)
    right = leading_rows(weight, rank, generator)
    return (weight @ right.T) @ right
