"""Gates: a coefficient per head and per neuron, learned with the update under an l1 penalty.

A head's gate multiplies what it hands to the output projection. Attention is linear in its probabilities, so that
equals the coefficient on a head's probabilities of DSEE's first version; a neuron's gate multiplies its activation, as
in EarlyBERT (Chen et al. 2021). A gate belongs to the base, as masks and cuts do: it is a parameter of the bare
projection that reads the gated features, so that no adapter's file holds it. It is applied in front of that projection
and any updates around it, so that the base and every adapter see the same gated input. ``dsee.prune`` and
``dsee.fold_gates`` fold gates into the weights, where they vanish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.architectures import LayerView, layers
from dsee.errors import ArchitectureError, InputError, OrderError
from dsee.masks import bare
from dsee.pruning.scores import ScoreInput, register_score
from dsee.update.bases import is_quantised, refuse_recomputed
from dsee.update.layer import GATE, DseeLayer, any_merged
from dsee.update.side import SideBranch

#: Unit -> the part whose input its gates multiply.
READERS = {"heads": "output", "neurons": "ffn_out"}
#: EarlyBERT's, for heads and neurons alike.
STRENGTH = 1e-4


def _apply_gate(linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # reads the gate off the module it is called with, so that a deep copy of a model has gates of its own
    gate: Any = bare(linear)._parameters[GATE]
    x: torch.Tensor = args[0]
    spread = gate.repeat_interleave(x.shape[-1] // gate.numel())
    # in the gate's precision: bf16 has no number between 0.996 and 1
    return ((x * spread).to(x.dtype), *args[1:])


def add_gates(model: nn.Module, *, heads: bool = True, neurons: bool = True) -> None:
    """Put a trainable gate of 1 on every head and neuron, in place; no logit changes.

    Add adapters first and make the optimizer afterwards. Gates are kept in fp32 or better, whatever the model's dtype.

    Args:
        model: a transformers model of a mapped family, bare or wrapped by PEFT.
        heads: gates on heads.
        neurons: gates on neurons of the feed-forward parts.

    Raises:
        InputError: neither heads nor neurons, or a weight is recomputed at every call.
        OrderError: there are gates already, or an update is merged.
        ArchitectureError: the family has no map, or a weight is of a kind into which no gate can be folded.
    """
    units = [unit for unit, wanted in (("heads", heads), ("neurons", neurons)) if wanted]
    if not units:
        raise InputError("add_gates: give heads=True, neurons=True or both.")
    if any_merged(model):
        raise OrderError("add_gates: an update is merged into the weights. Call model.unmerge_adapter() first.")
    if has_gates(model):
        raise OrderError("add_gates: this model has gates already. Fold them first with dsee.fold_gates(model).")
    views = layers(model)
    for view in views:
        for unit in units:
            _check_foldable(view.part(READERS[unit]), f"layer {view.index}, {READERS[unit]}")
    for view in views:
        for unit in units:
            _add(view.part(READERS[unit]), torch.ones(getattr(view, unit)))


def _check_foldable(linear: Any, key: str) -> None:
    base = bare(linear) if isinstance(linear, DseeLayer) else linear
    refuse_recomputed(base, key)
    if isinstance(base, SideBranch):
        raise ArchitectureError(f"{key}: it has a branch of a split merge, which no gate is folded into. Gate first.")
    if not isinstance(base, (nn.Linear, Conv1D)) or is_quantised(base):
        raise ArchitectureError(
            f"{key}: no gate can be folded into a {type(base).__name__}, only into a Linear or Conv1D in floating "
            "point, bare or with DSEE updates. Load the model without quantisation."
        )


def _add(linear: Any, values: torch.Tensor) -> None:
    weight = bare(linear).weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    bare(linear).register_parameter(GATE, nn.Parameter(values.to(device=weight.device, dtype=dtype)))
    linear.register_forward_pre_hook(_apply_gate)


def drop_gate(linear: Any) -> None:
    """Take a gate off without folding it.

    Args:
        linear: a gated linear.
    """
    del bare(linear)._parameters[GATE]
    for key, hook in list(linear._forward_pre_hooks.items()):
        if hook is _apply_gate:
            del linear._forward_pre_hooks[key]


def gate_of(view: LayerView, unit: str) -> nn.Parameter | None:
    """Return the gates of one layer, shape (heads,) or (neurons,), or None where there are none.

    Args:
        view: the layer.
        unit: "heads" or "neurons".
    """
    found: nn.Parameter | None = bare(view.part(READERS[unit]))._parameters.get(GATE)
    return found


def gated_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the linears whose input is gated, with their paths.

    Args:
        model: any model.
    """
    for name, module in model.named_modules():
        if _apply_gate in module._forward_pre_hooks.values():
            yield name, module


def has_gates(model: nn.Module) -> bool:
    """Whether any input is gated.

    Args:
        model: any model.
    """
    return next(gated_linears(model), None) is not None


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all gates, layer by layer.

    Args:
        model: any model.

    Raises:
        OrderError: there are none.
    """
    found: list[nn.Parameter] = [bare(linear)._parameters[GATE] for _, linear in gated_linears(model)]
    if not found:
        raise OrderError("This model has no gates. Call dsee.add_gates(model) first, before making the optimizer.")
    return found


def gate_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all gates by layer and unit ("0.heads", "0.neurons", ...), detached, on the CPU; empty without gates.

    Args:
        model: a transformers model, with or without gates.
    """
    if not has_gates(model):
        return {}
    found = {f"{view.index}.{unit}": gate_of(view, unit) for view in layers(model) for unit in READERS}
    return {name: gate.detach().cpu().clone() for name, gate in found.items() if gate is not None}


@torch.no_grad()
def set_gates(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Give the gates stored values; gates that the model does not have yet are added.

    Args:
        model: a transformers model of a mapped family.
        values: as :func:`gate_values` returns them; lists of numbers will do.

    Raises:
        InputError: the values do not fit the model's heads and neurons, or its gates.
    """
    sizes = {f"{view.index}.{unit}": (view, unit) for view in layers(model) for unit in READERS}
    stored = {name: torch.as_tensor(value) for name, value in values.items()}
    for name, value in stored.items():
        size = getattr(*sizes[name]) if name in sizes else None
        if size is None or value.shape != (size,):
            raise InputError(f"The gates {name!r} of shape {tuple(value.shape)} do not fit this model.")
    if (present := gate_values(model)) and present.keys() != stored.keys():
        raise InputError("The stored gates are not on the same heads and neurons as this model's.")
    for name, value in stored.items():
        view, unit = sizes[name]
        gate = gate_of(view, unit)
        if gate is None:
            _add(view.part(READERS[unit]), value)
        else:
            gate.copy_(value)


def gate_penalty(model: nn.Module, strength: float = STRENGTH) -> torch.Tensor:
    """Return strength x sum of |gate| over all heads and neurons, to add to the loss of a training loop of one's own.

    Under gradient accumulation divide it as the loss is divided. With a Trainer use :class:`dsee.GateCallback`.

    Args:
        model: a model with gates.
        strength: of the l1 penalty.

    Returns:
        A scalar that gradients flow through.

    Raises:
        OrderError: the model has no gates.
        InputError: a negative strength.
    """
    gates = gate_parameters(model)
    check_strength(strength)
    return strength * torch.stack([gate.abs().sum().to(gates[0].device) for gate in gates]).sum()


def penalise_steps(model: nn.Module, optimizer: torch.optim.Optimizer, strength: float = STRENGTH) -> Any:
    """Let an optimizer add the l1 penalty's subgradient, strength x sign(gate), to the gates' gradients at each step.

    Just before the step everything else has been done to the gradients: accumulation over batches, the average over
    processes, the unscaling of mixed precision, clipping. So the penalty counts once and in full per step, whatever
    the loss is, and wherever it is computed.

    Args:
        model: a model with gates.
        optimizer: a torch optimizer that has them among its parameters.
        strength: of the l1 penalty.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        OrderError: no gates, or the optimizer was made before them.
        InputError: a negative strength.
    """
    gates = gate_parameters(model)
    check_strength(strength)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(gate) not in known for gate in gates):
        raise OrderError("The optimizer does not know the gates: make it after dsee.add_gates(model).")

    @torch.no_grad()
    def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - torch's signature
        for gate in gates:
            pull = strength * gate.sign()
            # a fused optimizer under mixed precision unscales inside its step
            scale = getattr(optimizer, "grad_scale", None)
            pull = pull if scale is None else pull * scale
            gate.grad = pull if gate.grad is None else gate.grad.add_(pull)

    return optimizer.register_step_pre_hook(before_step)


def check_strength(strength: float) -> None:
    """Refuse a penalty that would drive gates apart.

    Raises:
        InputError: ``strength`` is negative or no number.
    """
    if not strength >= 0:
        raise InputError(f"strength={strength} of the l1 penalty on gates has to be at least 0; 1e-4 is usual.")


@register_score("gate")
def gate_score(given: ScoreInput) -> list[torch.Tensor]:
    """|gate|, as learned under the l1 penalty (Liu et al. 2017, EarlyBERT, DSEE's first version).

    Raises:
        OrderError: there are no gates on that unit.
    """
    found = [gate_of(view, given.unit) for view in given.layers]
    if any(gate is None for gate in found):
        raise OrderError(
            f"score='gate' ranks {given.unit} by their gates, but this model has none on its {given.unit}. Call "
            "dsee.add_gates(model) before tuning and tune with dsee.GateCallback(), or use score='taylor'."
        )
    return [gate.detach().abs().cpu() for gate in found if gate is not None]
