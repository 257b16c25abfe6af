"""Counters of the server in Prometheus' text format; a handful of lines instead of a dependency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

#: Upper bounds of the seconds a request takes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Upper bounds of the items in a batch.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Values counted by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start empty.

        Args:
            bounds: ascending upper bounds; everything above counts under +Inf.
        """
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value.

        Args:
            value: what was seen.
        """
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        """Return the samples, buckets cumulated as the format wants them.

        Args:
            name: of the metric.
        """
        total, found = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum}", f"{name}_count {total}"]


class Metrics:
    """What the server counts. Touched in the event loop's thread only.

    Attributes:
        requests: by path and status.
        texts: texts answered.
        seconds: of each answered request.
        batch_seconds: of each batch.
        batch_sizes: items of each batch.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.requests: Counter[tuple[str, int]] = Counter()
        self.texts = 0
        self.seconds = Histogram(SECONDS)
        self.batch_seconds = Histogram(SECONDS)
        self.batch_sizes = Histogram(SIZES)

    def batch(self, items: int, seconds: float) -> None:
        """Count a batch.

        Args:
            items: its size.
            seconds: it took.
        """
        self.texts += items
        self.batch_sizes.observe(items)
        self.batch_seconds.observe(seconds)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            path: of a known end point, or "other": strangers' paths would grow without bound.
            status: of the answer.
            seconds: from its arrival to the answer.
        """
        self.requests[path, status] += 1
        if status == 200:
            self.seconds.observe(seconds)

    def text(self, waiting: int) -> str:
        """Return everything in Prometheus' text format, version 0.0.4.

        Args:
            waiting: items in the queue now.
        """
        lines = [
            *_head("dsee_requests_total", "counter", "Requests by path and status."),
            *(
                f'dsee_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self.requests.items())
            ),
            *_head("dsee_texts_total", "counter", "Texts that went through the model."),
            f"dsee_texts_total {self.texts}",
            *_head("dsee_queue_length", "gauge", "Texts waiting for the model."),
            f"dsee_queue_length {waiting}",
        ]
        for name, kind, found in (
            ("dsee_request_seconds", "Time of answered requests.", self.seconds),
            ("dsee_batch_seconds", "Time of one batch in the model.", self.batch_seconds),
            ("dsee_batch_size", "Texts in one batch.", self.batch_sizes),
        ):
            lines += [*_head(name, "histogram", kind), *found.lines(name)]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
