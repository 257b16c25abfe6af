"""How long work says how far it is; what shows it (a terminal, nothing) is the caller's choice."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """One stage's bar."""

    def advance(self, steps: int = 1) -> None:
        """Go on by ``steps``."""

    def note(self, text: str) -> None:
        """Show a short remark beside the bar."""


class Progress(Protocol):
    """A place for bars."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Bar]:
        """Open the bar of a stage of ``total`` steps."""

    def skipped(self, name: str) -> None:
        """Say that a stage was finished by an earlier run."""

    def say(self, text: str) -> None:
        """Say something about the work."""


class _SilentBar:
    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Shows nothing; the default of the library."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Bar]:  # noqa: ARG002 - nothing to show
        """See :class:`Progress`."""
        from contextlib import nullcontext

        return nullcontext(_SilentBar())

    def skipped(self, name: str) -> None:
        """See :class:`Progress`."""

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
