"""Between a matrix and its blocks: a block is a small rectangle of weights, output rows x input columns."""

from __future__ import annotations

import torch
from torch import nn


def block_grid(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Return how many blocks a matrix has down and across, the smaller ones at its edges included.

    Args:
        shape: (out, in).
        block: output rows x input columns of a block.
    """
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def block_sums(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return the sum over each block, shape :func:`block_grid`.

    Args:
        matrix: (out, in).
        block: output rows x input columns of a block.
    """
    if block == (1, 1):
        return matrix
    rows, columns = matrix.shape
    down, across = block_grid((rows, columns), block)
    padded = nn.functional.pad(matrix, (0, across * block[1] - columns, 0, down * block[0] - rows))
    return padded.reshape(down, block[0], across, block[1]).sum((1, 3))


def block_sizes(shape: tuple[int, int], block: tuple[int, int]) -> torch.Tensor | None:
    """Return the weights in each block, int32, shape :func:`block_grid`; None if all blocks are full.

    Args:
        shape: (out, in).
        block: output rows x input columns of a block.
    """
    if shape[0] % block[0] == 0 and shape[1] % block[1] == 0:
        return None
    down, across = block_grid(shape, block)
    height = torch.full((down,), block[0], dtype=torch.int32)
    width = torch.full((across,), block[1], dtype=torch.int32)
    height[-1] = shape[0] - (down - 1) * block[0]
    width[-1] = shape[1] - (across - 1) * block[1]
    return height[:, None] * width


def spread(blocks: torch.Tensor, shape: tuple[int, int], block: tuple[int, int]) -> torch.Tensor:
    """Give every weight its block's value.

    Args:
        blocks: one value per block, shape :func:`block_grid`.
        shape: (out, in).
        block: output rows x input columns of a block.

    Returns:
        (out, in).
    """
    if block == (1, 1):
        return blocks
    wide = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]
