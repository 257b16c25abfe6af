"""The table, as cells; what draws them is another matter."""

from __future__ import annotations

from dsee.report.rows import Row

HEADER = ["", "accuracy", "trainable", "FLOPs", "latency p50 / p95", "speed-up", "MB", "memory"]


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
            f"{row.accuracy:.1f} %" + (f" ({row.accuracy - base.accuracy:+.1f})" if row is not base else ""),
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


def markdown(rows: list[Row]) -> str:
    """Return the table in Markdown.

    Args:
        rows: the variants, the baseline first.
    """
    lines = [HEADER, ["---"] * len(HEADER), *cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
