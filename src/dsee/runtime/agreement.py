"""Layers that go one way together, because one call can then compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from dsee.architectures._view import LayerView
from dsee.kernels.library import KINDS
from dsee.kernels.linear import Packed, Way
from dsee.kernels.two_four import Compressed
from dsee.runtime.activations import mapped_layers
from dsee.runtime.choices import DENSE, Choice, Choices
from dsee.runtime.whole_encoder import LINEARS

#: A sparse way has to win by this share of the dense time, or the layer stays dense.
MARGIN = 0.03


def agree(model: nn.Module, choices: Choices, packed: dict[str, Packed | Compressed]) -> None:
    """Let query, key and value of a layer go the way that is fastest for the three together.

    Their shapes are equal and so are their times but for the clock's errors, and only of one kind can they be one call.

    Args:
        model: the model.
        choices: what was chosen for each layer alone; changed.
        packed: path -> packed weight of what is not dense; changed.
    """
    names = {id(module): name for name, module in model.named_modules()}
    known = {choice.name: choice for choice in choices.layers}
    for view in mapped_layers(model):
        paths = {names.get(id(view.part(part)), "") for part in view.names("heads")}
        three = [known[path] for path in paths if path in known]
        if len(three) < 3 or len({choice.chosen for choice in three}) < 2:
            continue
        ways = set.intersection(*(set(choice.times_ms) for choice in three)) & {DENSE, *KINDS}
        times = {way: sum(choice.times_ms[way] for choice in three) for way in ways}
        best = min(times, key=times.__getitem__, default=DENSE)
        if DENSE not in times or any(choice.chosen not in ways for choice in three):
            continue
        best = best if times[best] < (1 - MARGIN) * times[DENSE] else DENSE
        for choice in three:
            known[choice.name] = replace(choice, chosen=best)
            if best == DENSE:
                packed.pop(choice.name, None)
            elif choice.chosen != best:
                packed[choice.name] = Packed(cast("Way", best))
    choices.layers = list(known.values())


def all_alike(model: nn.Module, choices: Sequence[Choice]) -> list[Choice] | None:
    """Return choices that send all linears of all mapped layers to one kind of kernel, the fastest for all together.

    Alone some of them may lose by it; as an encoder in one call they may win more.

    Args:
        model: the model.
        choices: what was chosen for each layer alone.

    Returns:
        Choices in the same order; None where they are alike already, or a layer has no such way.
    """
    known = {choice.name: choice for choice in choices}
    inside = encoder_linears(model)
    if not inside or any(path not in known for path in inside):
        return None
    ways = set.intersection(*(set(known[path].times_ms) for path in inside)) & set(KINDS)
    totals = {way: sum(known[path].times_ms[way] for path in inside) for way in ways}
    best = min(totals, key=totals.__getitem__, default=None)
    if best == "weights" and totals.get("blocks", float("inf")) < (1 + MARGIN) * totals[best]:
        best = "blocks"
    if best is None or all(known[path].chosen == best for path in inside):
        return None
    return [replace(choice, chosen=best) if choice.name in inside else choice for choice in choices]


def encoder_linears(model: nn.Module) -> set[str]:
    """Return the paths of all linears of a model's layers; none where the layers have other parts than an encoder's.

    Args:
        model: any model.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found = {path for view in mapped_layers(model) for path in _linears(view, names)}
    return set() if "" in found else found


def _linears(view: LayerView, names: dict[int, str]) -> list[str]:
    """Paths of a layer's six linears; one that is no path of the model where it has others."""
    if len(view.names("neurons")) > 1:
        return [""]
    paths = [names.get(id(view.part(part)), "") for part in LINEARS]
    return paths if len(set(paths)) == len(LINEARS) else [""]
