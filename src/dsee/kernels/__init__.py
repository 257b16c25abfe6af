"""Sparse linear layers, and attention between them, on ordinary CPUs."""

from dsee.kernels.attend import attention
from dsee.kernels.int8 import Int8Matrix, pack_int8
from dsee.kernels.library import library, why_not
from dsee.kernels.linear import from_kernels, on_kernels, to_kernels
from dsee.kernels.matrix import SparseMatrix, pack
from dsee.kernels.norm import add_norm
from dsee.kernels.product import Side, pack_side, sparse_linear

__all__ = [
    "Int8Matrix",
    "Side",
    "SparseMatrix",
    "add_norm",
    "attention",
    "from_kernels",
    "library",
    "on_kernels",
    "pack",
    "pack_int8",
    "pack_side",
    "sparse_linear",
    "to_kernels",
    "why_not",
]
