"""What a person sees while something runs: bars on a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Optional

from vmjob.progress import Bar, Reporter
from vmjob.units import format_duration


class _TqdmBar(Bar):
    def __init__(self, elapsed: float = 0.0, **options: Any) -> None:
        from tqdm import tqdm

        columns, lines = _terminal()
        self._bar = tqdm(file=sys.stderr, leave=False, ncols=columns, nrows=lines, **options)
        self._bar.start_t -= elapsed

    def advance(self, amount: float) -> None:
        self._bar.update(amount)

    def set(self, value: float) -> None:
        self._bar.n = value
        self._bar.refresh()

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _terminal() -> tuple[int, int]:
    """Columns and lines; a terminal that tells none (under script or ssh -tt) would be given no bar at all."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns, lines = 0, 0
    return min(columns or 80, 100), lines or 24


class _Output(Reporter):
    """Passes the program's own output on, exactly, to where a program's output goes."""

    def output(self, stream: str, data: bytes) -> None:
        out = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        try:
            out.write(data)
            out.flush()
        except BrokenPipeError:  # whoever read us has seen enough; the job goes on
            return


class PlainReporter(_Output):
    """One line a stage, for logs and batch systems."""

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        say(f"{name:<9} {format_duration(seconds):>9}{'' if ok else '   failed'}")

    def note(self, text: str) -> None:
        say(text)


class TerminalReporter(PlainReporter):
    """Adds bars: bytes where they are counted, the program's own percent, else the time gone by."""

    def __init__(self) -> None:
        self._stage = ""
        self._since = 0.0
        self._bar: Optional[_TqdmBar] = None

    def stage_started(self, name: str) -> None:
        self._stage, self._since = name, time.monotonic()

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        self._clear()
        super().stage_ended(name, seconds, ok)

    def tick(self, percent: Optional[int] = None) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < 1:
            return
        if self._bar is None:
            known = "{desc} {bar:30} {percentage:3.0f}% {elapsed}"
            self._bar = _TqdmBar(elapsed, desc=f"vmjob: {self._stage:<9}", total=100 if percent is not None else None,
                                 bar_format=known if percent is not None else "{desc} {elapsed}")
            self._has_percent = percent is not None
        if percent is not None and not self._has_percent:
            self._clear()
            self.tick(percent)
        else:
            self._bar.set(percent or 0)

    def output(self, stream: str, data: bytes) -> None:
        self._clear()  # a half-drawn bar must not share a line with the program
        super().output(stream, data)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        self._clear()
        return _TqdmBar(desc=f"vmjob: {name}", total=total, unit=unit, unit_scale=True, unit_divisor=1024, delay=1)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None


class QuietReporter(_Output):
    """Only the program's own output."""


class JsonReporter(Reporter):
    """stdout belongs to the JSON document; the program's output goes to stderr."""

    def output(self, stream: str, data: bytes) -> None:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()


def choose(quiet: bool = False, json: bool = False) -> Reporter:
    """The reporter that fits the options and where stderr leads."""
    if json:
        return JsonReporter()
    if quiet:
        return QuietReporter()
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()


def say(text: str) -> None:
    """A line of ours among the program's output."""
    print(f"vmjob: {text}", file=sys.stderr, flush=True)
