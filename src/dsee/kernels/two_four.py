"""Linear layers whose weight keeps two of each four inputs, on the sparse tensor cores of NVIDIA GPUs.

torch does the work (``torch.sparse.to_sparse_semi_structured``, cuSPARSELt). As on the kernels a layer changes its
class and nothing else; the packed copy of its weight, 9/16 of its bytes, comes on top of the weight.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError
from dsee.kernels.linear import STATE, OnKernels, Swapped, mark

#: What the layers are called in choices.
WAY = "2:4"
#: First compute capability with sparse tensor cores (Ampere).
CAPABILITY = (8, 0)
#: dtype of the weight -> what rows and columns, (out, in), have to be multiples of for cuSPARSELt, torch's default.
MULTIPLES = {torch.float16: (16, 16), torch.bfloat16: (16, 16)}


@dataclass
class Compressed:
    """What such a layer knows.

    Attributes:
        matrix: the packed weight, (out, in); None where there is none, and the layer computes densely.
        source: address and count of changes of the weight that was packed.
    """

    matrix: torch.Tensor | None = None
    source: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy packs its own weight when it needs it
        return {"matrix": None, "source": None}


def missing(device: torch.device) -> str | None:
    """Return why a device has no 2:4 products; None if it has.

    Args:
        device: of the weights.
    """
    if device.type != "cuda":
        return f"2:4 needs an NVIDIA GPU, and the weights are on {device.type}"
    if torch.version.hip is not None:
        return "2:4 needs an NVIDIA GPU"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"2:4 needs compute capability 8.0, and {name} has {found[0]}.{found[1]}"
    return None


def unfit(weight: torch.Tensor) -> str | None:
    """Return why a weight cannot be computed as 2:4, whatever the device; None if it can.

    Args:
        weight: (out, in).
    """
    if weight.dtype not in MULTIPLES:
        return f"2:4 takes float16 and bfloat16, not {str(weight.dtype).removeprefix('torch.')}"
    rows, columns = MULTIPLES[weight.dtype]
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return f"2:4 takes sizes in multiples of {rows} x {columns}, not {weight.shape[0]} x {weight.shape[1]}"
    kept = (weight != 0).reshape(weight.shape[0], -1, 4).sum(dim=2)
    if bool((kept > 2).any()):
        share = float((kept > 2).float().mean())
        return f"not 2:4: {share:.0%} of its groups of four inputs keep more than two"
    return None


def convert(weight: torch.Tensor) -> torch.Tensor:
    """Pack a weight that :func:`unfit` has nothing against.

    Args:
        weight: (out, in), on a device that :func:`missing` has nothing against.

    Returns:
        A tensor that ``functional.linear`` takes in place of the weight.

    Raises:
        RuntimeError: torch was built without cuSPARSELt.
    """
    with warnings.catch_warnings():
        # torch says once that this interface is a prototype
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        packed: torch.Tensor = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
    return packed


class OnTensorCores(Swapped):
    """The forward pass that the classes below share."""

    def _oriented(self) -> torch.Tensor:
        return cast("torch.Tensor", self._parameters["weight"])

    def _state(self) -> Compressed:
        return cast("Compressed", self.__dict__[STATE])

    def packed(self) -> torch.Tensor | None:
        """Return the packed weight, made again if the weight has changed; None if it cannot be packed any more."""
        state, weight = self._state(), self._oriented()
        source = mark(weight)
        if state.source != source:
            state.source = source
            # outside inference mode: what is made there cannot take part in anything that records gradients
            with torch.inference_mode(False), torch.no_grad():
                able = missing(weight.device) is None and unfit(weight) is None
                state.matrix = convert(weight) if able else None
        return state.matrix

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        """Return x W' + b: by the packed weight, or densely where it cannot (gradients, autocast, other dtypes).

        Args:
            input: (..., in).

        Returns:
            (..., out).
        """
        weight, bias = self._oriented(), self._parameters["bias"]
        gradients = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (input, weight, bias)
        )
        plain = gradients or input.dtype != weight.dtype or input.device != weight.device or not input.numel()
        matrix = None
        if not plain and not torch.is_autocast_enabled(input.device.type):
            # a compiled graph keeps the packed weight that it saw
            matrix = self._state().matrix if torch.compiler.is_compiling() else self.packed()
        if matrix is None:
            return functional.linear(input, weight, bias)
        flat = input.reshape(-1, input.shape[-1]).contiguous()
        return functional.linear(flat, matrix, bias).reshape(*input.shape[:-1], -1)

    def __repr__(self) -> str:
        rows, columns = self._oriented().shape
        return f"{type(self).__name__}(in={columns}, out={rows}, kernel={WAY})"


class TwoFourLinear(OnTensorCores, nn.Linear):
    """An ``nn.Linear`` on sparse tensor cores."""


class TwoFourConv1D(OnTensorCores, Conv1D):
    """GPT-2's ``Conv1D``, whose weight is (in, out), on sparse tensor cores."""

    def _oriented(self) -> torch.Tensor:
        return super()._oriented().T


#: Exactly these classes.
TWO_FOUR: dict[type[Any], type[Any]] = {nn.Linear: TwoFourLinear, Conv1D: TwoFourConv1D}


def to_two_four(linear: nn.Module, *, packed: Compressed | None = None) -> None:
    """Let a linear layer run on sparse tensor cores, in place.

    Args:
        linear: an ``nn.Linear`` or ``Conv1D``.
        packed: what another layer with the same weight packed already.

    Raises:
        InputError: a layer of another class, or one that cannot: the message says why.
        RuntimeError: torch was built without cuSPARSELt.
    """
    found = TWO_FOUR.get(type(linear))
    if found is None or isinstance(linear, OnKernels):
        raise InputError(f"to_two_four: a {type(linear).__name__} cannot run as 2:4; nn.Linear and Conv1D can.")
    weight: Any = linear.weight
    oriented = weight.T if isinstance(linear, Conv1D) else weight
    why = missing(weight.device) or unfit(oriented)
    if why is not None:
        raise InputError(f"to_two_four: {why}.")
    linear.__dict__[STATE] = packed or Compressed()
    linear.__class__ = found
    try:
        cast("OnTensorCores", linear).packed()
    except RuntimeError:
        from_two_four(linear)
        raise


def from_two_four(linear: nn.Module) -> None:
    """Undo :func:`to_two_four`; does nothing to other layers.

    Args:
        linear: any module.
    """
    for plain, sparse in TWO_FOUR.items():
        if type(linear) is sparse:
            linear.__class__ = plain
            del linear.__dict__[STATE]
