"""Errors that a user can act on: what is wrong, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DseeError(Exception):
    """Base of every error that dsee raises on purpose. The command exits with ``exit_code``."""

    exit_code = 1


class InputError(DseeError, ValueError):
    """The user's input (an argument, a recipe, a data file) cannot be used as it is."""

    exit_code = 2


class ArchitectureError(InputError):
    """The model belongs to a family without a map, or has no such part."""


class OrderError(InputError):
    """A step was asked for at a point of the chain where it makes no sense."""


class ArtifactError(DseeError):
    """A folder on disk is missing, damaged, foreign, too new, or could not be written."""


class ExportError(DseeError):
    """An exported model does not agree with the model it came from."""


class StoppedError(DseeError):
    """The user pressed Ctrl-C; 130 is 128 + SIGINT, as shells have it."""

    exit_code = 130


class ProcessError(DseeError):
    """The processes of one run do not agree, or one of them has gone."""


class EchoError(DseeError):
    """Another process of this run has failed and said why; this one ends without a word."""

    def __init__(self, code: int = 1) -> None:
        super().__init__("Another process of this run has failed; its message says why.")
        self.exit_code = code


class MissingExtraError(DseeError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency. Install it with: pip install 'dsee[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `` Did you mean 'query'?``, or an empty string when nothing is near.

    Args:
        name: what the user wrote.
        known: the valid names.
    """
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Join names for a message, cutting a long list.

    Args:
        names: the names, in the order to show.
        limit: how many to show before "and N more".
    """
    names = [str(n) for n in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def check_ratio(name: str, value: float) -> float:
    """Return ``value`` if it lies strictly between 0 and 1.

    Raises:
        InputError: if it does not.
    """
    if not 0.0 < value < 1.0:
        raise InputError(
            f"{name}={value} is out of range: a ratio lies strictly between 0 and 1 "
            f"(0.25 removes a quarter). For a count, give a whole number."
        )
    return value
