"""The table, as cells; what draws them is another matter."""

from __future__ import annotations

from dsee.report.rows import Row
from dsee.tasks.metrics import METRICS


def header(rows: list[Row]) -> list[str]:
    """Return the names of the table's columns.

    Args:
        rows: the variants.
    """
    scores = [METRICS[name].title for name in rows[0].scores]
    return ["", *scores, "trainable", "FLOPs", "latency p50 / p95", "speed-up", "MB", "memory"]


def cells(rows: list[Row]) -> list[list[str]]:
    """Return the table's body.

    The change of FLOPs in brackets is the encoder's; the speed-up is a ratio of CPU times to the first row.

    Args:
        rows: the variants, the baseline first.
    """
    base = rows[0]
    return [
        [
            row.name,
            *(_score(name, row, base) for name in row.scores),
            f"{row.trainable_share:.2%}" if row.trainable_share is not None else "-",
            f"{row.flops / 1e9:.2f} G"
            + (f" ({row.encoder_flops / base.encoder_flops - 1:+.0%})" if row is not base else ""),
            f"{row.p50_ms:.1f} / {row.p95_ms:.1f} ms",
            f"{base.cpu_ms / row.cpu_ms:.2f}x",
            f"{row.megabytes:.1f}",
            f"{row.memory_mb:.0f} MB" if row.memory_mb is not None else "-",
        ]
        for row in rows
    ]


def _score(name: str, row: Row, base: Row) -> str:
    metric = METRICS[name]
    change = f" ({row.scores[name] - base.scores[name]:+.{metric.digits}f})" if row is not base else ""
    return metric.shown(row.scores[name]) + change


def markdown(rows: list[Row]) -> str:
    """Return the table in Markdown.

    Args:
        rows: the variants, the baseline first.
    """
    names = header(rows)
    lines = [names, ["---"] * len(names), *cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
