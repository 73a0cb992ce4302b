"""How much time a process really had: on a busy node its threads stand in the queue for a CPU most of the time, and
what they did not do then says nothing about them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Optional

STARVED = 4.0  # so many times longer it took than the process had: it is the node that was too slow


class Pace:
    """The clock of the process ``pid()`` (None: of no process, and then of the wall)."""

    def __init__(self, pid: Optional[Callable[[], Optional[int]]] = None) -> None:
        self._pid = pid or (lambda: None)
        self._at, self._waited = time.monotonic(), self._queued()
        self._owed = 0.0

    def step(self) -> tuple[float, float]:
        """Seconds since the last step: those that the process had, and those that went by."""
        now, waited = time.monotonic(), self._queued()
        wall = now - self._at
        # the thread that waited most: mostly a CPU of the guest's. The kernel tells of a wait when it is over, so that
        # some of it belongs to the steps before
        lost = max((ns - self._waited.get(thread, 0) for thread, ns in waited.items()), default=0) / 1e9
        self._owed += max(0.0, lost)
        self._at, self._waited = now, waited
        paid = min(self._owed, wall)
        self._owed -= paid
        return wall - paid, wall

    def _queued(self) -> dict[str, int]:
        """Nanoseconds that each thread stood in the queue so far; empty where the kernel does not tell."""
        found, pid = dict[str, int](), self._pid()
        if pid is None:
            return found
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
                with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:  # noqa: PTH123
                    found[thread] = int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            pass
        return found
