"""The signals a batch system (or a person) sends, turned into calls.

SIGTERM, SIGINT, SIGHUP: the slot is taken away. SIGTSTP, SIGUSR1: pause; SIGCONT, SIGUSR2: resume.
While nothing listens, the first group raises Interrupted at once, so that whatever is under way is undone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Optional

from vmjob.errors import Interrupted

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PAUSE = (signal.SIGTSTP, signal.SIGUSR1)
RESUME = (signal.SIGCONT, signal.SIGUSR2)

Listener = Callable[[int], None]


class Signals:
    """Context manager: installs the handlers, and puts the old ones back. Main thread only."""

    def __init__(self) -> None:
        self.listener: Optional[Listener] = None
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (*STOP, *PAUSE, *RESUME):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """From here on signals change nothing: we are on the way out already."""
        self.listener = lambda number: None

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
