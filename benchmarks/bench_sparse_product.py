"""Where the sparse product should change its form: gathered, by matrix products, folded into W.

One training pass (forward and backward) of a linear with r=16 and N entries beside it, each form forced in turn, over
LoRA's r=16 in PEFT's own arithmetic, in the same run. One thread, CPU seconds, interleaved. The switches in
``dsee.update.folded`` and ``dsee.update.sparse_product`` are set from this table; the last column is the form they
choose now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dsee
from common import cpu_seconds, keep
from dsee.update import folded, sparse_product
from dsee.update.layer import DseeLinear

RANK = 16
#: (in, out), tokens.
CASES = [((384, 384), 2048), ((384, 384), 256), ((768, 768), 2048), ((768, 768), 512), ((768, 3072), 512)]
SIZES = [16, 64, 256, 1024, 4096, 16384]
FORMS = {"gathered": (2.0, 10**9), "products": (0.0, 10**9), "folded": (None, 0)}


def branch(shape: tuple[int, int], tokens: int, n_sparse: int) -> tuple[DseeLinear, torch.Tensor]:
    """A linear with an update, and an input that wants a gradient, as inside a model."""
    torch.manual_seed(0)
    config = dsee.DseeConfig(r=RANK, n_sparse=n_sparse, support="random", init_weights=False)
    base = nn.Linear(*shape).requires_grad_(False)
    return DseeLinear(base, "default", config, "linear"), torch.randn(tokens, shape[0]).requires_grad_()


def run(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        layer(x).sum().backward()
        layer.zero_grad()
        x.grad = None

    return step


def forced(call: Callable[[], None], form: str) -> Callable[[], None]:
    """The call with one form set for all sizes; "folded" leaves the values' gradient to the switch."""
    share, tokens = FORMS[form]

    def step() -> None:
        kept = folded.FOLD_TOKENS, folded.FOLD_PRODUCTS, sparse_product.DENSE_FROM
        folded.FOLD_TOKENS, folded.FOLD_PRODUCTS = tokens, 0.0
        sparse_product.DENSE_FROM = kept[2] if share is None else share
        try:
            call()
        finally:
            folded.FOLD_TOKENS, folded.FOLD_PRODUCTS, sparse_product.DENSE_FROM = kept

    return step


class Lora(nn.Module):
    """PEFT's LoRA, as its forward computes it."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.base = nn.Linear(*shape).requires_grad_(False)
        self.a, self.b = nn.Linear(shape[0], RANK, bias=False), nn.Linear(RANK, shape[1], bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base and low-rank part."""
        return self.base(x) + self.b(self.a(x)) * 2.0


def one(shape: tuple[int, int], tokens: int, n_sparse: int) -> dict[str, Any]:
    """Time every form of one case."""
    layer, x = branch(shape, tokens, n_sparse)
    calls = {"lora": run(Lora(shape), x)} | {form: forced(run(layer, x), form) for form in FORMS}
    seconds = cpu_seconds(calls, rounds=9 if n_sparse < 4096 else 5)
    weights = shape[0] * shape[1]
    if folded.worth_folding(n_sparse, tokens, weights):
        now = "folded"
    else:
        now = "products" if sparse_product._many(n_sparse, tokens, shape[1], shape[0]) else "gathered"
    ratios = {form: round(seconds[form] / seconds["lora"], 3) for form in FORMS}
    row = {"in": shape[0], "out": shape[1], "tokens": tokens, "n": n_sparse, "lora_seconds": seconds["lora"]}
    return row | ratios | {"chosen": now}


def main() -> None:
    rows = []
    for shape, tokens in CASES:
        for n_sparse in SIZES:
            row = one(shape, tokens, n_sparse)
            rows.append(row)
            forms = "  ".join(f"{form} {row[form]:.2f}" for form in FORMS)
            print(
                f"  {shape[0]:>4} -> {shape[1]:<4} {tokens:>5} tokens  N={n_sparse:<6} {forms}  {row['chosen']}",
                flush=True,
            )
    keep("sparse_product", rows)


if __name__ == "__main__":
    main()
