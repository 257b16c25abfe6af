"""What the terminal shows: bars while it works, a table at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from dsee.report.rows import Row
    from dsee.training.progress import Bar


class _RichBar:
    def __init__(self, progress: Progress, task: int) -> None:
        self.progress, self.task = progress, task

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.task, steps)  # type: ignore[arg-type]  # rich's TaskID is a NewType of int

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=text)  # type: ignore[arg-type]  # see above


class _LineBar:
    """For logs: a line at every tenth of the way instead of a moving bar."""

    def __init__(self, say: Callable[[str], None], name: str, total: int) -> None:
        self.say, self.name, self.total = say, name, total
        self.done, self.told, self.remark, self.start = 0, 0, "", time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        tenth = 10 * self.done // max(1, self.total)
        if tenth > self.told:
            self.told = tenth
            seconds = int(time.monotonic() - self.start)
            self.say(
                f"{self.name:<8} {self.done}/{self.total}  {seconds // 60}:{seconds % 60:02}  {self.remark}".rstrip()
            )

    def note(self, text: str) -> None:
        self.remark = text


class Terminal:
    """Progress on standard error, results on standard output."""

    def __init__(self, *, silent: bool = False) -> None:
        """Open.

        Args:
            silent: say nothing on the way, as one of several processes that is not the first.
        """
        self.errors = Console(stderr=True, quiet=silent)

    def say(self, text: str) -> None:
        """Print a line about the work."""
        self.errors.print(text, style="dim", highlight=False)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Bar]:
        """Show a bar; where there is no terminal, print a line now and then."""
        if not self.errors.is_terminal:
            yield _LineBar(self.say, name, total)
            return
        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.errors) as progress:
            task = progress.add_task(name, total=total, note="")
            yield _RichBar(progress, task)
            progress.update(task, completed=total)

    def skipped(self, name: str) -> None:
        """Say that an earlier run finished the stage."""
        self.say(f"{name:<8} done before")

    def table(self, rows: list[Row], output: Path) -> None:
        """Print the report's table."""
        from dsee.report.table import cells, header

        self.cells(header(rows), cells(rows)).print(f"written to {output}", highlight=False)

    def cells(self, header: list[str], body: list[list[str]]) -> Console:
        """Print a table on standard output, and return what printed it.

        Args:
            header: its columns, the first one aligned left.
            body: its lines.
        """
        table = Table(title=None, header_style="bold")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
        for line in body:
            table.add_row(*line)
        console = Console()
        # a pipe has no width of its own; cut-off figures would help nobody
        if not console.is_terminal:
            console = Console(width=140)
        console.print(table)
        return console


def quiet_libraries(*, silent: bool = False) -> None:
    """Keep the libraries' own bars and advice off our terminal; their errors still come as exceptions.

    Args:
        silent: keep all warnings off, since another process shows the same ones.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # deprecations inside transformers and peft concern their authors, not the user of a command
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|transformers\.|peft\.")
    if silent:
        # another process shows the same ones
        warnings.simplefilter("ignore")
