"""Linear layers that run on the kernels where they can.

A layer changes its class and nothing else: parameters, buffers, hooks, name and place stay, so files, counts and
training know no difference, and changing the class back undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError, OrderError
from dsee.kernels import pair
from dsee.kernels.int8 import Int8Matrix, int8_compute, pack_int8
from dsee.kernels.matrix import Kind, SparseMatrix, pack
from dsee.kernels.product import Side, activate, compute
from dsee.kernels.torch_operator import int8_linear_op, sparse_linear_op

#: "int8" rounds weights and activations; the others compute what the dense layer computes.
Way = Kind | Literal["int8"]
#: Where a layer keeps its packed weight.
STATE = "_dsee_sparse"


@dataclass
class Packed:
    """What a layer on the kernels knows.

    Attributes:
        kind: "blocks", "weights" or "int8".
        activation: applied to the result, or None.
        matrix: the packed weight; None before it is made.
        side: a packed low-rank branch, for layers that have one.
        source: address and count of changes of each tensor that was packed.
        follower: the layer that computes this one too, see :mod:`dsee.kernels.pair`; None for most.
        leader: the layer that this one computes too, or None.
        watched: modules that lie between the two; a hook on one wants to see what the leader leaves.
    """

    kind: Way
    activation: str | None = None
    matrix: SparseMatrix | Int8Matrix | None = None
    side: Side | None = None
    source: tuple[Any, ...] = ()
    follower: OnKernels | None = None
    leader: OnKernels | None = None
    watched: tuple[nn.Module, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        # a packed matrix holds addresses; a copy packs its own weight when it needs it
        # and computes each layer by itself
        return {"kind": self.kind, "activation": self.activation, "matrix": None, "side": None, "source": ()}


def kernels_can(x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether the kernels can compute with these tensors: float32 on the CPU, and no gradient asked for.

    Args:
        x: the input.
        weight: the weight.
        *others: bias and whatever else takes part.
    """
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not (x.is_cpu and weight.is_cpu):
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, *others)):
        return False
    return not torch.is_autocast_enabled("cpu")


def mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what changes when a tensor does: its address and the count of its changes.

    Args:
        tensor: any tensor; one of inference mode keeps no count, and nothing trains it.
    """
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Swapped(nn.Module):
    """A layer that computes in another way than the class it had."""


class OnKernels(Swapped):
    """The forward pass that the classes below share."""

    _dsee_sparse: Packed
    #: Which dimension of the stored weight is the input's.
    _input_side = 1

    def _oriented(self) -> torch.Tensor:
        weight: Any = self._parameters["weight"]
        return cast("torch.Tensor", weight)

    def _source(self) -> tuple[Any, ...]:
        """Marks of all that is packed."""
        return mark(cast("torch.Tensor", self._parameters["weight"]))

    def _pack(self, state: Packed) -> SparseMatrix | Int8Matrix:
        return pack_int8(self._oriented()) if state.kind == "int8" else pack(self._oriented(), state.kind)

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._oriented(), self._parameters["bias"])

    def packed(self) -> SparseMatrix | Int8Matrix:
        """Return the packed weight, made again if what it was made of has changed since."""
        state, source = self._dsee_sparse, self._source()
        if state.matrix is None or source != state.source:
            state.matrix = self._pack(state)
            state.source = source
        return state.matrix

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        """Return act(x W' + b): by the kernels, or densely where they cannot (gradients, other dtypes and devices).

        Args:
            input: (..., in).

        Returns:
            (..., out).
        """
        # the dictionaries rather than attributes: small products take microseconds, and so does nn.Module's lookup
        own: Any = self._parameters
        state, bias = self.__dict__[STATE], own["bias"]
        compiling = torch.compiler.is_compiling()
        if state.follower is not None and not compiling and pair.can_hand_on(self, input):
            return input
        if state.leader is not None and input.shape[-1] != own["weight"].shape[self._input_side]:
            # the leader has handed on what it was given
            return pair.both(state.leader, self, input)
        # the operator for compiled graphs knows no branch
        if not kernels_can(input, own["weight"], *own.values()) or (compiling and state.side is not None):
            return activate(self._dense(input), state.activation)
        if compiling and state.matrix is not None:
            # a compiled graph keeps the packed weight that it saw
            operation: Any = int8_linear_op if isinstance(state.matrix, Int8Matrix) else sparse_linear_op
            return cast("torch.Tensor", operation(input, state.matrix, bias, state.activation))
        matrix = self.packed()
        if isinstance(matrix, Int8Matrix):
            return int8_compute(input, matrix, bias, state.activation)
        return compute(input, matrix, bias, state.side, state.activation)

    def __repr__(self) -> str:
        state, packed = self._dsee_sparse, self.packed()
        rows, columns = packed.shape
        shown = f"{type(self).__name__}(in={columns}, out={rows}, kernel={state.kind}, density={packed.density:.2f}"
        return shown + (f", activation={state.activation})" if state.activation else ")")


class SparseLinear(OnKernels, nn.Linear):
    """An ``nn.Linear`` on the kernels."""


class SparseConv1D(OnKernels, Conv1D):
    """GPT-2's ``Conv1D``, whose weight is (in, out), on the kernels."""

    _input_side = 0

    def _oriented(self) -> torch.Tensor:
        return super()._oriented().T


#: Exactly these classes; a subclass may compute something else.
CLASSES: dict[type[Any], type[Any]] = {nn.Linear: SparseLinear, Conv1D: SparseConv1D}
#: Those without a branch beside the weight.
PLAIN = tuple(CLASSES)


def to_kernels(linear: nn.Module, kind: Way, activation: str | None = None, *, packed: Packed | None = None) -> None:
    """Let a linear layer run on the kernels, in place.

    Args:
        linear: an ``nn.Linear`` or ``Conv1D``.
        kind: "blocks", "weights" or, which rounds, "int8".
        activation: a key of ``ACTIVATIONS`` to apply to the result.
        packed: what another layer with the same weight packed already, in place of both.

    Raises:
        InputError: a layer of another class, or a side branch and "int8".
    """
    found = CLASSES.get(type(linear))
    if kind == "int8" and type(linear) not in PLAIN:
        raise InputError(f"to_kernels: a {type(linear).__name__} has no 8-bit product; nn.Linear and Conv1D have.")
    if found is None:
        raise InputError(f"to_kernels: a {type(linear).__name__} cannot run on the kernels; nn.Linear and Conv1D can.")
    linear.__dict__[STATE] = packed or Packed(kind, activation)
    linear.__class__ = found
    if isinstance(linear, OnKernels):
        linear.packed()


def from_kernels(linear: nn.Module) -> None:
    """Undo :func:`to_kernels`; does nothing to other layers.

    Args:
        linear: any module.
    """
    for plain, sparse in CLASSES.items():
        if type(linear) is sparse:
            linear.__class__ = plain
            del linear.__dict__[STATE]


def on_kernels(model: nn.Module) -> dict[str, Swapped]:
    """Return the layers that run on the kernels, or on sparse tensor cores, by their path.

    Args:
        model: any model.
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, Swapped)}


def refuse_on_kernels(model: nn.Module, step: str) -> None:
    """Refuse a step that changes the shape of layers or what lies between them.

    Args:
        model: any model.
        step: for the message.

    Raises:
        OrderError: a layer runs on the kernels.
    """
    found = next(iter(on_kernels(model)), None)
    if found is not None:
        raise OrderError(
            f"{step}: {found} runs on the sparse kernels, as dsee.optimize left it. Call undo() on what optimize "
            "returned first, and optimize again afterwards."
        )
