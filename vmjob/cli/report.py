"""What a person sees while something runs: bars on a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Any, Optional, TextIO

from vmjob.core.escapes import shown
from vmjob.core.progress import Bar, Reporter
from vmjob.core.units import format_duration


class _TqdmBar(Bar):
    def __init__(self, elapsed: float = 0.0, **options: Any) -> None:
        from tqdm import tqdm

        if options.get("unit") in ("job", "source"):  # some had ended before anybody looked: a rate would be none
            options["unit_scale"] = False
            options["bar_format"] = "{desc}: {percentage:3.0f}% {bar:30} {n:.0f} of {total:.0f} {unit}s"
        columns, lines = _terminal()
        self._bar = tqdm(file=sys.stderr, leave=False, ncols=columns, nrows=lines, **options)
        self._bar.start_t -= elapsed

    def advance(self, amount: float) -> None:
        self._bar.update(amount)

    def set(self, value: float) -> None:
        self._bar.n = value
        self._bar.refresh()

    def set_total(self, total: float) -> None:
        self._bar.total = total

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _terminal() -> tuple[int, int]:
    """Columns and lines; a terminal that tells none (under script or ssh -tt) would be given no bar at all."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns, lines = 0, 0
    return min(columns or 80, 100), lines or 24


def write_all(descriptor: int, data: bytes) -> None:
    """Straight to the descriptor: a Python stream that somebody waits in could not be closed at our end."""
    with contextlib.suppress(BrokenPipeError):  # whoever read us has seen enough; the job goes on
        while data:
            data = data[os.write(descriptor, data):]


class _Output(Reporter):
    """Passes the program's own output on, exactly, to where a program's output goes."""

    def output(self, stream: str, data: bytes) -> None:
        write_all(1 if stream == "stdout" else 2, data)


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
        self._lock = threading.RLock()  # the program's output comes from threads of its own

    def stage_started(self, name: str) -> None:
        self._stage, self._since = name, time.monotonic()

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        self._clear()
        super().stage_ended(name, seconds, ok)

    def tick(self, percent: Optional[int] = None) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < 1 or not self._lock.acquire(blocking=False):
            return
        try:
            self._draw(percent, elapsed)
        finally:
            self._lock.release()

    def _draw(self, percent: Optional[int], elapsed: float) -> None:
        if self._bar is None:
            known = "{desc} {bar:30} {percentage:3.0f}% {elapsed}"
            self._bar = _TqdmBar(elapsed, desc=f"vmjob: {self._stage:<9}", total=100 if percent is not None else None,
                                 bar_format=known if percent is not None else "{desc} {elapsed}")
            self._has_percent = percent is not None
        if percent is not None and not self._has_percent:
            self._clear()
            self._draw(percent, elapsed)
        else:
            self._bar.set(percent or 0)

    def output(self, stream: str, data: bytes) -> None:
        self._clear()  # a half-drawn bar must not share a line with the program
        super().output(stream, data)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        self._clear()
        return _TqdmBar(desc=f"vmjob: {shown(name)}", total=total, unit=unit, unit_scale=True, unit_divisor=1024,
                        delay=1)

    def _clear(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.__exit__()
                self._bar = None


class QuietReporter(_Output):
    """Only the program's own output."""


class JsonReporter(Reporter):
    """stdout belongs to the JSON document; the program's output goes to stderr."""

    def output(self, stream: str, data: bytes) -> None:
        write_all(2, data)


def choose(quiet: bool = False, json: bool = False) -> Reporter:
    """The reporter that fits the options and where stderr leads."""
    if json:
        return JsonReporter()
    if quiet:
        return QuietReporter()
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()


class Tame:
    """A text stream on which strangers' names cannot steer a terminal, whoever prints them. Programs' own output does
    not come this way (``write_all``)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(shown(text, keep="\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """A line of ours among the program's output, and those below it that are indented by two spaces; strangers' names
    in it cannot steer a terminal."""
    lines = "\nvmjob:   ".join(map(shown, text.split("\n  ")))
    with contextlib.suppress(OSError):  # nobody listens any more: the run and its status go on
        print(f"vmjob: {lines}", file=sys.stderr, flush=True)


def tame(data: bytes) -> bytes:
    """A guest's output made fit for a terminal: lines and tabs stay, what would steer it does not."""
    return shown(data, keep="\n\t").encode()


def show(text: str) -> None:
    """The answer of a verb whose status must survive a reader that has gone."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
