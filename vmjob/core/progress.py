"""How a long step tells where it is, without knowing who listens.

The library calls a Reporter; only the CLI makes one that prints (cli.report). ``Stages`` times the
named stages of a run for result.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

from vmjob.core.errors import VmjobError

if TYPE_CHECKING:
    from vmjob.core.result import StageTime


class Reporter:
    """Hears what happens; this one says nothing. Subclasses override what they show."""

    def stage_started(self, name: str) -> None:
        """A stage begins."""

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        """A stage ended."""

    def note(self, text: str) -> None:
        """One line a person should see."""

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        """A progress bar; ``total`` None where the end is not known. The caller closes it (context manager)."""
        return Bar()

    def tick(self, percent: Optional[int] = None) -> None:
        """The stage still runs (called about every second); ``percent``: what the program says of its progress."""

    def output(self, stream: str, data: bytes) -> None:
        """Bytes of the program in the guest; ``stream`` is stdout or stderr. Comes from a thread for each stream,
        so that one who is slow here delays the program and nothing else."""


class Bar:
    """A progress bar that shows nothing."""

    def advance(self, amount: float) -> None:
        """More of the total is done."""

    def set(self, value: float) -> None:
        """So much is done."""

    def set_total(self, total: float) -> None:
        """So much there is to do, as far as is known now."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class Stages:
    """Times stages in order; an error that leaves a stage is marked with the stage's name."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.times: list[StageTime] = []
        self.current = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.current = name
        self.reporter.stage_started(name)
        start, ok = time.monotonic(), False
        try:
            yield
            ok = True
        except VmjobError as error:
            error.stage = error.stage or name
            raise
        finally:
            seconds = time.monotonic() - start
            from vmjob.core.result import StageTime

            self.times.append(StageTime(name, seconds))
            self.reporter.stage_ended(name, seconds, ok)
