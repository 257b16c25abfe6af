"""Is it worth it: accuracy after recovering against measured time, for every way to prune, in one plot.

    python benchmarks/bench_worth.py                                  # times the ways that pruning.jsonl has figures of
    python benchmarks/bench_worth.py --into docs/results/kernels.md   # table and plot from the stored times, no timing

Accuracy comes from docs/results/data/pruning.jsonl (grid_prune.py: SST-2, Fisher score, the same recovery for each,
paired seeds). Time is measured here: the tuned MiniLM pruned in the same way and merged so that it computes what the
accuracy is of (under masks by policy "split", or masked where the update was held to the mask), put on the sparse
kernels by dsee.optimize where that is faster, one thread, CPU seconds, all ways in bursts of five calls in one process.
Recovering changes values and no zeros, so it changes no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import in_turns
from grid import insert, rows, say
from grid_data import parts
from grid_prune import DATA, TASKS, calibration, rules_of, tuned
from prune_cells import PruneCell
from prune_table import described

ROOT = Path(__file__).parents[1]
TIMES = DATA.with_name("worth.json")
PLOT = ROOT / "docs" / "results" / "worth.svg"
SHAPES = [(1, 128), (8, 128)]
MARKS = ("<!-- worth -->", "<!-- end of worth -->")
#: All by the same score and the same recovery.
WAYS = [
    *(PruneCell(cut=cut) for cut in ("flops 0.75", "25/40", "flops 0.5")),
    *(PruneCell(mask="blocks", ratio=ratio) for ratio in (0.5, 0.7)),
    *(PruneCell(mask="weights", ratio=ratio) for ratio in (0.5, 0.7)),
    PruneCell(mask="2:4", ratio=0.5),
    *(PruneCell(mask="blocks", ratio=ratio, masked=True) for ratio in (0.5, 0.7)),
]


#: In the plot.
MARKERS = (
    ("cut", "s"),
    ("4x1 blocks", "o"),
    ("4x1 blocks, update under the mask", "v"),
    ("single weights", "^"),
    ("2:4", "D"),
)


def kind(way: PruneCell) -> str:
    """Which of the four patterns."""
    if way.masked:
        return "4x1 blocks, update under the mask"
    return {"": "cut", "blocks": "4x1 blocks", "weights": "single weights", "2:4": "2:4"}[way.mask]


def accuracy(found: list[dict[str, Any]], way: PruneCell) -> list[tuple[float, float]]:
    """Unpruned and recovered accuracy of each seed of one way."""
    same = [row for row in found if replace(PruneCell(**row["cell"]), seed=0) == way]
    return [(row["unpruned"], row["recovered"]) for row in same]


def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds of each way and shape."""
    import dsee

    data = parts("sst2")
    models: dict[str, Any] = {"dense": dsee.merge(tuned("sst2", "all", 0))}
    for way in WAYS:
        model = tuned("sst2", "all", 0)
        say(f"pruning: {described(way)}")
        dsee.prune(model, *rules_of(way), calibration=calibration(data["train"]))
        # what has the accuracy of the recovered model: with the update's low-rank part beside a masked weight, unless
        # it was held to the mask
        models[described(way)] = dsee.merge(model, policy="split" if way.mask and not way.masked else "masked")
    times: dict[str, dict[str, float]] = {}
    kernels: dict[str, dict[str, str]] = {}
    for batch, tokens in SHAPES:
        shape = f"{batch} x {tokens}"
        inputs = {"input_ids": torch.randint(5, 20_000, (batch, tokens), generator=torch.Generator().manual_seed(0))}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        # the dense model stays as anybody has it
        chosen = {name: dsee.optimize(model, inputs, rounds=3) for name, model in models.items() if name != "dense"}
        kernels[shape] = {name: choices.summary for name, choices in chosen.items()}
        with torch.inference_mode():
            calls = {name: partial(model, **inputs) for name, model in models.items()}
            times[shape] = {
                name: round(1e3 * s, 3) for name, s in in_turns(calls, max(3, rounds // (5 * batch)))[0].items()
            }
        for choices in chosen.values():
            choices.undo()
        say(f"{shape}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times[shape].items()))
    return {"milliseconds": times, "kernels": kernels, "torch": torch.__version__}


def table(times: dict[str, dict[str, float]], found: list[dict[str, Any]]) -> str:
    """Markdown: one row for each way."""
    shapes = list(times)
    heads = ["pruned", *(f"speed at {shape}" for shape in shapes), "unpruned", "recovered", "change", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for way in WAYS:
        name, seeds = described(way), accuracy(found, way)
        if not seeds or any(name not in times[shape] for shape in shapes):
            continue
        speeds = [f"{times[shape]['dense'] / times[shape][name]:.2f}x" for shape in shapes]
        changes = [after - before for before, after in seeds]
        spreads = [_spread([pair[i] for pair in seeds]) for i in (0, 1)] + [_spread(changes)]
        lines.append("| " + " | ".join([name, *speeds, *spreads, str(len(seeds))]) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def plot(times: dict[str, float], found: list[dict[str, Any]], shape: str) -> None:
    """Accuracy over speed, one colour a pattern; bars are the spread over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dsee"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    base = [pair[0] for pair in accuracy(found, WAYS[0])]
    axes.errorbar([1.0], [statistics.mean(base)], yerr=_bar(base), fmt="k*", markersize=12, capsize=3, label="unpruned")
    for label, mark in MARKERS:
        ways = [way for way in WAYS if kind(way) == label and described(way) in times and accuracy(found, way)]
        if not ways:
            continue
        ways.sort(key=lambda way: -times[described(way)])
        values = [[pair[1] for pair in accuracy(found, way)] for way in ways]
        speeds = [times["dense"] / times[described(way)] for way in ways]
        bars = [_bar(each) or 0.0 for each in values]
        axes.errorbar(speeds, [statistics.mean(v) for v in values], yerr=bars, fmt=f"{mark}-", capsize=3, label=label)
        for way, x, y in zip(ways, speeds, values, strict=True):
            note = way.cut.replace("flops ", "FLOPs x ") if way.cut else f"{way.ratio:.0%}"
            axes.annotate(note, (x, statistics.mean(y)), textcoords="offset points", xytext=(6, 5), fontsize=8)
    axes.set_xlabel(f"times as fast as dense PyTorch, one thread, {shape.replace('x', 'sentence(s) x')} tokens")
    axes.set_ylabel(f"SST-2 {TASKS['sst2'].metric}, % (mean ± spread of seeds)")
    axes.set_title("MiniLM-L6 pruned and recovered for one epoch")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)


def _bar(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="timed calls of each way")
    parser.add_argument("--into", type=Path, help=f"a page to put the table into, between {MARKS[0]} and {MARKS[1]}")
    options = parser.parse_args()
    if options.into is None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        TIMES.write_text(json.dumps(measure(options.rounds), indent=2) + "\n", encoding="utf-8")
        return
    if not TIMES.is_file():
        sys.exit(f"{TIMES} is not there; run this without --into first")
    times, found = json.loads(TIMES.read_text(encoding="utf-8"))["milliseconds"], rows(DATA)
    shape = next(iter(times))
    plot(times[shape], found, shape)
    text = f"![Accuracy over speed of every way to prune]({PLOT.name})\n\n{table(times, found)}"
    insert(options.into, text, MARKS)


if __name__ == "__main__":
    main()
