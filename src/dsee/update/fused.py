"""Layers that hold query, key and value in one matrix (GPT-2's ``c_attn``): which of the three an update goes on."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import nn

from dsee.errors import InputError, listed, nearest
from dsee.update.thin import thin_product

#: The thirds of a fused layer's output, from the first row down.
PARTS = ("query", "key", "value")

#: ``model_type`` -> what is fused there, and the parts that the paper and LoRA's authors adapt. Not cross-attention's
#: ``c_attn``, which holds key and value only.
DEFAULT_PARTS: dict[str, dict[str, list[str]]] = {
    name: {"attn.c_attn": ["query", "value"]} for name in ("gpt2", "openai-gpt", "imagegpt")
}

#: Fused as well, but head by head: thirds of their output are not query, key and value.
INTERLEAVED = ("bloom", "falcon", "gpt_neox", "gpt_neox_japanese", "codegen")


def check_parts(name: str, parts: Any) -> None:
    """Make sure that a value of ``fused_parts`` names parts.

    Args:
        name: what to complain about.
        parts: the value.

    Raises:
        InputError: it does not.
    """
    if not isinstance(parts, (list, tuple)) or not parts or len(set(parts)) != len(parts):
        raise InputError(f"{name}={parts!r} has to be a list of parts, each once: {listed(PARTS)}.")
    for part in parts:
        if part not in PARTS:
            raise InputError(f"{name}: there is no part {part!r}.{nearest(str(part), PARTS)} Parts: {listed(PARTS)}.")


def resolve(fused_parts: dict[str, list[str]] | None, model: nn.Module) -> dict[str, list[str]]:
    """Return what is fused in a model: what the configuration says, or the family's default.

    Args:
        fused_parts: the configuration's; None for the default, an empty dict for none.
        model: the model to adapt.

    Raises:
        InputError: a name that fits no layer, or a family that fuses in another order.
    """
    family = str(getattr(getattr(model, "config", None), "model_type", "")).removeprefix("dsee_")
    if fused_parts is None:
        return {name: list(parts) for name, parts in DEFAULT_PARTS.get(family, {}).items()}
    if fused_parts and family in INTERLEAVED:
        raise InputError(
            f"fused_parts: {family!r} keeps query, key and value of one head together, not in three blocks, so parts "
            "cannot be told apart by name. Leave fused_parts out: the update then goes on the whole layer."
        )
    names = [name for name, _ in model.named_modules() if name]
    for key in fused_parts:
        if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            leaves = sorted({name.rpartition(".")[2] for name in names})
            raise InputError(
                f"fused_parts: no layer of {type(model).__name__} is called {key!r}.{nearest(key, leaves)}"
            )
    return fused_parts


def parts_of(fused_parts: dict[str, list[str]] | None, key: str, out_features: int) -> tuple[int, ...] | None:
    """Return which thirds of a layer's output take an update, in the output's order, or None for a plain layer.

    Args:
        fused_parts: the configuration's.
        key: the layer's path in the model.
        out_features: its output width.

    Raises:
        InputError: the output does not split in three.
    """
    pattern = get_pattern_key(fused_parts or {}, key)
    if not fused_parts or pattern not in fused_parts:
        return None
    if out_features % len(PARTS):
        raise InputError(
            f"fused_parts[{pattern!r}]: the {out_features} outputs of {key} are not query, key and value of one width."
        )
    return tuple(sorted(PARTS.index(part) for part in fused_parts[pattern]))


def check_even(keep: torch.Tensor, out_features: int) -> None:
    """Make sure that a cut leaves query, key and value of one width.

    Args:
        keep: int64, the rows of a fused layer's output that stay.
        out_features: how many it has now.

    Raises:
        InputError: it does not.
    """
    counts = torch.bincount(keep // (out_features // len(PARTS)), minlength=len(PARTS)).tolist()
    if len(set(counts)) > 1:
        raise InputError(
            f"A cut of a fused layer has to keep as many rows of query, key and value, not {listed(counts)}."
        )


class FusedUp(nn.Module):
    """U of a fused layer: one block for each chosen part, each reading its own r of V's outputs.

    Attributes:
        weight: (parts x out / 3, r), the blocks from the first chosen part down.
        parts: which thirds of the output they fill.
        out_features: width of the whole output.
    """

    def __init__(self, rank: int, out_features: int, parts: tuple[int, ...]) -> None:
        """Make the blocks, not yet initialised to anything meaningful.

        Args:
            rank: r of each part.
            out_features: width of the whole output, three parts.
            parts: which thirds, ascending.
        """
        super().__init__()
        self.out_features, self.parts = out_features, parts
        self.weight = nn.Parameter(torch.empty(len(parts) * self.part_features, rank))
        nn.init.normal_(self.weight, std=rank**-0.5)

    @property
    def part_features(self) -> int:
        """Outputs of one part."""
        return self.out_features // len(PARTS)

    def blocks(self) -> list[torch.Tensor]:
        """Return U of each part, shape (out / 3, r) each."""
        return list(self.weight.split(self.part_features))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply each block to its own part of the hidden values.

        Args:
            hidden: (..., parts x r), V's output.

        Returns:
            (..., out), zero where no update goes.
        """
        inputs = iter(hidden.split(self.weight.shape[1], dim=-1))
        blocks = dict(zip(self.parts, self.blocks(), strict=True))
        outputs = [thin_product(next(inputs), blocks[i]) if i in blocks else None for i in range(len(PARTS))]
        like = next(output for output in outputs if output is not None)
        return torch.cat([like.new_zeros(like.shape) if output is None else output for output in outputs], dim=-1)

    def dense(self) -> torch.Tensor:
        """Return U as one matrix of shape (out, parts x r): U V is then the whole layer's low-rank update."""
        rank, count = self.weight.shape[1], len(self.parts)
        full = [self.weight.new_zeros(self.part_features, count * rank) for _ in PARTS]
        for i, (part, block) in enumerate(zip(self.parts, self.blocks(), strict=True)):
            full[part] = nn.functional.pad(block, (i * rank, (count - 1 - i) * rank))
        return torch.cat(full)

    def kept_rows(self, keep: torch.Tensor) -> torch.Tensor:
        """Return which rows of ``weight`` stay when rows of the layer's output do.

        Args:
            keep: int64, ascending rows of the whole output, as many of each part.
        """
        width = self.part_features
        kept = [keep[keep // width == part] - part * width + i * width for i, part in enumerate(self.parts)]
        return torch.cat(kept)

    def extra_repr(self) -> str:
        """Show the sizes in ``print(model)``."""
        parts = ", ".join(PARTS[i] for i in self.parts)
        return f"rank={self.weight.shape[1]}, out_features={self.out_features}, parts={parts}"
