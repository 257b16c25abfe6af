"""S2: N trained values and N fixed positions, as one leaf module."""

from __future__ import annotations

import torch
from torch import nn

from dsee.errors import ArtifactError, DseeError, InputError
from dsee.update.folded import folded_product
from dsee.update.sparse_product import add_sparse_product, rows_and_columns

INT32_LIMIT = 2**31
#: Why a support may be missing, and what to do; the layer names another reason where a choice is due.
NOT_LOADED = (
    "This update expects a stored support that has not been loaded. To tune afresh from such a configuration, set "
    "support_stored=False; to use the stored update, load its weights."
)


def index_dtype(out_features: int, in_features: int) -> torch.dtype:
    """Return the dtype that can number every weight of the matrix: int32 below 2**31 weights, else int64."""
    return torch.int32 if out_features * in_features < INT32_LIMIT else torch.int64


class SparseDelta(nn.Module):
    """The sparse part of one matrix's update.

    Attributes:
        weight: (N,) the trained values.
        indices: (N,) flat positions ``row * in + column`` in (out, in) orientation, ascending; int32. -1 marks a
            support that a checkpoint has yet to bring or ``dsee.choose_support`` to choose.
        shape: (2,) int32: out and in, so that positions made for another matrix are noticed.
    """

    weight: nn.Parameter
    indices: torch.Tensor
    shape: torch.Tensor

    def __init__(self, positions: torch.Tensor, out_features: int, in_features: int) -> None:
        """Start S2 at zero.

        Args:
            positions: (N,) distinct flat positions.
            out_features: rows of the matrix.
            in_features: columns of the matrix.

        Raises:
            InputError: a position lies outside the matrix or occurs twice.
        """
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.weight = nn.Parameter(torch.zeros(positions.numel()))
        self.register_buffer("indices", self._ordered(positions))
        self.register_buffer("shape", torch.tensor([out_features, in_features], dtype=torch.int32))
        self.missing = NOT_LOADED
        self._checked = False

    def _ordered(self, positions: torch.Tensor) -> torch.Tensor:
        known = positions[positions >= 0]
        size = self.out_features * self.in_features
        if known.numel() and (int(known.max()) >= size or known.unique().numel() != known.numel()):
            raise InputError(
                "The support has positions that occur twice or lie outside the "
                f"{self.out_features} x {self.in_features} matrix."
            )
        return positions.sort().values.to(index_dtype(self.out_features, self.in_features))

    @property
    def n_sparse(self) -> int:
        """N, the number of stored entries."""
        return self.weight.numel()

    @property
    def placed(self) -> bool:
        """Whether the positions are known: chosen or loaded."""
        return self.n_sparse == 0 or int(self.indices.min()) >= 0

    def rows_and_columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output and input index of each entry, int64, shape (N,) each."""
        return rows_and_columns(self.indices, self.in_features)

    def check(self) -> None:
        """Verify that the positions fit the matrix.

        Raises:
            DseeError: no checkpoint has brought the support yet.
            ArtifactError: the positions were made for a matrix of another shape, or are damaged.
        """
        stored = (int(self.shape[0]), int(self.shape[1]))
        if stored != (self.out_features, self.in_features):
            raise ArtifactError(
                f"This update was made for a {stored[0]} x {stored[1]} matrix but sits on one of {self.out_features} x "
                f"{self.in_features}: base and update do not belong together. Load it on the (pruned) base "
                "it was tuned on."
            )
        if not self.placed:
            raise DseeError(self.missing)
        if self.n_sparse and int(self.indices.max()) >= self.out_features * self.in_features:
            raise ArtifactError("The stored support points outside its matrix: the update's file is damaged.")
        if bool((self.indices[1:] <= self.indices[:-1]).any()):
            raise ArtifactError("The stored support does not ascend or repeats itself: the update's file is damaged.")
        self._checked = True

    def check_once(self) -> None:
        """Do :meth:`check` at the first call."""
        # not while tracing: reading index values would break a graph
        if not self._checked and not torch.compiler.is_compiling():
            self.check()

    def forward(self, y: torch.Tensor, x: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
        """Add ``s x S2^T`` to ``y`` in place.

        Args:
            y: (..., out), fresh.
            x: (..., in).
            scaling: s.

        Returns:
            y.
        """
        self.check_once()
        return add_sparse_product(y, x, self.weight if scaling == 1.0 else self.weight * scaling, self.indices)

    def folded(self, base: nn.Module, x: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
        """Return ``base(x) + s x S2^T``, S2 added to a passing copy of the base's weight.

        Args:
            base: a layer for which :func:`dsee.update.folded.can_fold` holds.
            x: (..., in).
            scaling: s.

        Returns:
            (..., out).
        """
        self.check_once()
        return folded_product(base, x, self.weight if scaling == 1.0 else self.weight * scaling, self.indices)

    def dense(self) -> torch.Tensor:
        """Return S2 as an (out, in) matrix, for merging and for oracles."""
        self.check()
        flat = torch.zeros(self.out_features * self.in_features, dtype=self.weight.dtype, device=self.weight.device)
        flat[self.indices.to(torch.int64)] = self.weight.detach()
        return flat.view(self.out_features, self.in_features)

    def resize(self, n_sparse: int) -> None:
        """Make room for a checkpoint with another N; values become zero and positions unknown.

        Args:
            n_sparse: the checkpoint's N.
        """
        device = self.indices.device
        self.weight = nn.Parameter(self.weight.new_zeros(n_sparse), requires_grad=self.weight.requires_grad)
        self.indices = torch.full((n_sparse,), -1, dtype=self.indices.dtype, device=device)
        self._checked = False

    def place(self, positions: torch.Tensor) -> None:
        """Put the support elsewhere; the values become zero, and their parameter stays the same unless N changes.

        Args:
            positions: (N,) distinct flat positions.

        Raises:
            InputError: a position lies outside the matrix or occurs twice.
        """
        ordered = self._ordered(positions)
        if ordered.numel() != self.n_sparse:
            self.resize(ordered.numel())
        self.weight.data.zero_()
        self.indices = ordered.to(self.indices.device)
        self._checked = False

    def extra_repr(self) -> str:
        """Show the sizes in ``print(model)``."""
        return f"n_sparse={self.n_sparse}, out_features={self.out_features}, in_features={self.in_features}"
