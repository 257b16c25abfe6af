"""Where a stage's figures go while it tunes: TensorBoard and the like, through transformers' Trainer."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed

#: Training loss and learning rate are reported every so many steps, validation figures whenever they are looked at.
EVERY = 10


@dataclass(frozen=True)
class Reports:
    """Who is told of one stage.

    Attributes:
        to: names of transformers' integrations.
        folder: for those that write files.
        name: of the run, for those that collect runs.
    """

    to: tuple[str, ...]
    folder: Path
    name: str

    def arguments(self) -> dict[str, Any]:
        """Return the ``TrainingArguments`` that say so; none if nobody is told."""
        if not self.to:
            return {}
        return {
            "report_to": list(self.to),
            "output_dir": str(self.folder),
            "run_name": self.name,
            "logging_strategy": "steps",
            "logging_steps": EVERY,
        }


def close_reports(reports: Reports | None) -> None:
    """End the runs of one stage, so that the next stage opens its own.

    transformers leaves a W&B run open until the process ends, and writes a second stage into the first one's run.

    Args:
        reports: who was told; None for nobody.
    """
    if reports is not None and "wandb" in reports.to:
        importlib.import_module("wandb").finish()


def check_reports(names: Sequence[str]) -> None:
    """Refuse to report to what is not installed.

    Args:
        names: the recipe's ``report_to``.

    Raises:
        InputError: a package is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"report_to: {listed(missing)} is not installed. Install it with: pip install {' '.join(missing)}"
        )
