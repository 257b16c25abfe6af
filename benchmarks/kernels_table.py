"""The kernels' figures as Markdown, from the JSON of bench_kernels.py, between the marks of a page.

python benchmarks/kernels_table.py benchmarks/results/kernels-avx2.json docs/results/kernels.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grid import insert

#: Least speed-ups asked for, by sentences of up to 128 and of 384 tokens.
GOALS = {
    "blocks 50%": (1.8, 1.4),
    "blocks 70%": (2.6, 1.8),
    "blocks 80%": (3.3, 2.2),
    "weights 80%": (1.5, 1.5),
    "weights 90%": (2.4, 2.4),
    "25/40 cut, blocks 50%": (2.5, 2.5),
}
SIZES = ("shape", "batch", "sequence", "dense_ms", "cold", "least")


def goal(name: str, row: dict[str, Any]) -> float | None:
    """What is asked of a variant at one size."""
    if row["sequence"] == 1:
        return 1.5 if name == "blocks 70%" else None
    return GOALS[name][row["sequence"] > 128] if name in GOALS else None


def cell(name: str, row: dict[str, Any]) -> str:
    """One ratio, bold where it misses its goal; behind strokes of calls after another model's and of least times."""
    asked = goal(name, row)
    shown = f"{row[name]:.2f}"
    shown = shown if asked is None or round(row[name], 2) >= asked else f"**{shown}** (goal {asked})"
    return shown + "".join(f" / {row[other][name]:.2f}" for other in ("cold", "least") if other in row)


def models(rows: list[dict[str, Any]]) -> str:
    """A table for each shape."""
    blocks = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        own = [row for row in rows if row["shape"] == shape]
        names = [name for name in own[0] if name not in (*SIZES, "dense")]
        lines = [f"### {shape}", "", "| sentences x tokens | dense | " + " | ".join(names) + " |"]
        lines.append("| --- " * (len(names) + 2) + "|")
        for row in own:
            head = f"| {row['batch']} x {row['sequence']} | {row['dense_ms']:.0f} ms | "
            lines.append(head + " | ".join(cell(name, row) for name in names) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def layers(rows: list[dict[str, Any]], top: float) -> str:
    """One table for single layers: blocks, single weights, torch's CSR, and how near the peak the blocks are."""
    shares = [key for key in rows[0] if key.endswith("%")]
    lines = [
        f"### Single layers (peak of this core: {top:.0f} GFLOP/s)",
        "",
        "| out x in | tokens | dense GFLOP/s | " + " | ".join(f"{share} zeros" for share in shares) + " |",
        "| --- " * (len(shares) + 3) + "|",
    ]
    for row in rows:
        cells = []
        for share in shares:
            found = row[share]["speed_up"]
            ratios = " / ".join(f"{found[name]:.2f}" for name in ("blocks", "weights", "csr"))
            cells.append(f"{ratios} ({row[share]['share_of_peak']['blocks']:.0%})")
        dense = row[shares[0]]["gflops"]["dense"]
        lines.append(f"| {row['out']} x {row['in']} | {row['tokens']} | {dense:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the tables into the page given, or print them."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    text = "\n\n".join(
        [
            *([models(figures["models"])] if "models" in figures else []),
            *([layers(figures["layers"], figures["peak_gflops"])] if "layers" in figures else []),
        ]
    )
    if len(sys.argv) > 2:
        path = figures["path"]
        insert(Path(sys.argv[2]), text, (f"<!-- {path} -->", f"<!-- end of {path} -->"))
    else:
        print(text)


if __name__ == "__main__":
    main()
