"""The matrices that a mask may fall on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.architectures import LayerView, base_model, layers
from dsee.architectures._registry import plain_model
from dsee.errors import ArchitectureError, InputError, listed, nearest
from dsee.masks import bare, get_mask, oriented
from dsee.update.bases import is_quantised, refuse_recomputed
from dsee.update.fused import PARTS
from dsee.update.layer import DseeLayer


@dataclass(frozen=True)
class Target:
    """One matrix that a mask may fall on. Everything is (out, in), also for Conv1D.

    Attributes:
        name: its path in the transformers model, the same with and without an update around it.
        linear: the module there: Linear, Conv1D, or a layer with updates.
        adapted_rows: output rows (start, stop) that the paper adapts, query and value; one matrix may hold several.
    """

    name: str
    linear: Any
    adapted_rows: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = oriented(self.linear).shape
        return rows, columns

    @property
    def weight(self) -> torch.Tensor:
        """W, fp32."""
        return oriented(self.linear).float()

    @property
    def delta(self) -> torch.Tensor | None:
        """Sum of the active updates dW = s (U V + S2), fp32; None without one."""
        if not isinstance(self.linear, DseeLayer):
            return None
        active = [name for name in self.linear.active_adapters if self.linear.has_update(name)]
        deltas = [self.linear.get_delta_weight(name).float() for name in active]
        if not deltas:
            return None
        total = torch.stack(deltas).sum(0)
        return total.T if self.linear.transposed else total

    @property
    def updated_rows(self) -> tuple[tuple[int, int], ...]:
        """Output rows (start, stop) that an active adapter updates: all, none, or parts of a fused matrix."""
        layer, rows = self.linear, self.shape[0]
        if not isinstance(layer, DseeLayer):
            return ()
        spans: set[tuple[int, int]] = set()
        for name in layer.active_adapters:
            if layer.has_update(name) and name not in layer.dsee_parts:
                return ((0, rows),)
            if layer.has_update(name):
                width = rows // len(PARTS)
                spans |= {(part * width, (part + 1) * width) for part in layer.dsee_parts[name]}
        return tuple(sorted(spans))

    @property
    def has_update(self) -> bool:
        """Whether an active adapter has an update here."""
        return bool(self.updated_rows)

    @property
    def effective(self) -> torch.Tensor:
        """W + dW, what the model computes with, fp32."""
        delta = self.delta
        return self.weight if delta is None else self.weight + delta

    @property
    def mask(self) -> torch.Tensor | None:
        """The mask it has, True where a weight is kept."""
        return get_mask(self.linear)


def mask_targets(model: nn.Module, names: Sequence[str] | None = None) -> list[Target]:
    """Return the matrices that a mask may fall on: all linears of the transformer layers, in the model's order.

    Embeddings, norms, biases, pooler and task head are never among them, nor are the update's own matrices and modules
    that are trained in full.

    Args:
        model: a transformers model, with or without updates.
        names: only these, matched as suffixes, as in ``target_modules``. A model without a map needs them.

    Raises:
        ArchitectureError: the family has no map and no name is given, or a weight is of a kind that holds no zeros.
        InputError: a name that fits no matrix, or a weight that is recomputed at every call.
    """
    found = dict(_of_layers(model)) if _mapped(model, names) else dict(_of_model(model))
    if names is not None:
        if isinstance(names, str) or not names:
            raise InputError(f"targets={names!r} has to be a list of names, such as ['query', 'value'].")
        for name in names:
            if not any(_fits(path, name) for path in found):
                leaves = sorted({path.rpartition(".")[2] for path in found})
                raise InputError(
                    f"targets: no matrix that may be masked is called {name!r}.{nearest(name, leaves)} "
                    f"There are: {listed(leaves)}."
                )
        found = {path: target for path, target in found.items() if any(_fits(path, name) for name in names)}
    for target in found.values():
        _check(target)
    return list(found.values())


def _fits(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _mapped(model: nn.Module, names: Sequence[str] | None) -> bool:
    try:
        layers(model)
    except ArchitectureError as error:
        if names is None:
            raise ArchitectureError(
                f"{error} Masks do without a map if you name the matrices: dsee.Weights(0.5, targets=['q_proj'])."
            ) from error
        return False
    return True


def _linears(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linears under a module by path, each with the update around it, without what PEFT has put into or beside it."""
    inside: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if name.startswith(inside) if inside else False:
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside += (f"{name}.",)
        if isinstance(module, AuxiliaryTrainingWrapper):
            continue
        if isinstance(bare(module), (nn.Linear, Conv1D)):
            yield name, module


def _of_layers(model: nn.Module) -> Iterator[tuple[str, Target]]:
    paths = {id(module): name for name, module in plain_model(model).named_modules()}
    for view in layers(model):
        rows = _adapted_rows(view)
        for _, linear in _linears(view.module):
            path = paths[id(linear)]
            yield path, Target(path, linear, rows.get(id(bare(linear)), ()))


def _adapted_rows(view: LayerView) -> dict[int, tuple[tuple[int, int], ...]]:
    """Rows of query and value by the bare linear that holds them; those of an attention over the encoder too."""
    rows: dict[int, tuple[tuple[int, int], ...]] = {}
    for part in ("query", "value"):
        own, holder = view.rows(part), id(bare(view.part(part)))
        rows[holder] = (*rows.get(holder, ()), (own.start, own.stop))
    for linear in view.crossing()[0:3:2]:
        rows[id(bare(linear))] = ((0, oriented(linear).shape[0]),)
    return rows


def _of_model(model: nn.Module) -> Iterator[tuple[str, Target]]:
    """Every linear of a model without a map, except its task head, pooler and whatever shares an embedding's weight."""
    plain: Any = plain_model(model)
    body = base_model(model)
    inside = {id(module) for module in body.modules()}
    tied = {id(module.weight) for module in plain.modules() if isinstance(module, nn.Embedding)}
    for path, linear in _linears(plain):
        if id(linear) in inside and "pooler" not in path and id(bare(linear).weight) not in tied:
            yield path, Target(path, linear)


def _check(target: Target) -> None:
    base = bare(target.linear)
    refuse_recomputed(base, target.name)
    if is_quantised(base):
        raise ArchitectureError(
            f"{target.name}: a {type(base).__name__} with a quantised weight ({base.weight.dtype}) cannot be masked. "
            "Load the model without quantisation, prune, merge, and quantise the result."
        )
