"""The signals a batch system (or a person) sends, turned into calls.

SIGTERM, SIGINT, SIGHUP: the slot is taken away. SIGTSTP, SIGUSR1: pause; SIGCONT, SIGUSR2: resume.
While nothing listens, the first group raises Interrupted at once, so that whatever is under way is undone; so does the
end of the time that ``limit`` was told, as WalltimeOver. While something listens, work that takes long and has no loop
of its own asks ``check`` again and again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Optional

from vmjob.errors import Interrupted, VmjobError, WalltimeOver

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PAUSE = (signal.SIGTSTP, signal.SIGUSR1)
RESUME = (signal.SIGCONT, signal.SIGUSR2)

Listener = Callable[[int], None]


class Signals:
    """Context manager: installs the handlers, and puts the old ones back. Main thread only."""

    def __init__(self) -> None:
        self.listener: Optional[Listener] = None
        self.received: list[int] = []
        self.late = False  # the time of ``limit`` is over
        self._failure: Optional[VmjobError] = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (*STOP, *PAUSE, *RESUME):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.no_limit()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def limit(self, seconds: Optional[float], failure: Optional[VmjobError] = None) -> None:
        """So many seconds are left for all that comes before the last steps of the way out; None: there is no limit.
        ``failure`` is raised then, also while something listens."""
        if seconds is None:
            return
        self._failure = failure
        self._before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._over))
        signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))

    def no_limit(self) -> None:
        """There is time again."""
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def ignore(self) -> None:
        """From here on signals change nothing: we are on the way out already."""
        self.listener = lambda number: None

    def checker(self, heard: int, reason: Optional[VmjobError] = None, until: Optional[float] = None
                ) -> Callable[[], None]:
        """What raises when the run is to end, for work that asks it at least every second: at a signal after the first
        ``heard``, and at the end of the time: of ``limit``, or, where the run was cut short before (``reason``), at the
        moment ``until`` (monotonic)."""
        def check() -> None:
            if len(self.received) > heard:
                raise reason or interrupted(self.received[-1])
            if reason is None and self.late:
                raise walltime_over()
            if reason is not None and until is not None and time.monotonic() > until:
                raise reason

        return check

    def _over(self, _number: int, _frame: Optional[FrameType]) -> None:
        self.late = True
        if self._failure or self.listener is None:
            raise self._failure or walltime_over()

    def _handle(self, number: int, _frame: Optional[FrameType]) -> None:
        if number in STOP:
            self.received.append(number)
        if self.listener is not None:
            self.listener(number)
        elif number in STOP:
            raise interrupted(number)
        elif number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)  # Ctrl-Z before there is a guest: as any program does


def interrupted(number: int) -> Interrupted:
    """The failure for a slot taken away by signal ``number``."""
    return Interrupted(f"stopped by {signal.Signals(number).name}",
                       "the slot was taken away or somebody interrupted the job: submit it again")


def walltime_over() -> WalltimeOver:
    """The failure for a run that took longer than it may."""
    return WalltimeOver("the walltime is over",
                        "ask for more (resources.walltime, --walltime), or do less in one job")
