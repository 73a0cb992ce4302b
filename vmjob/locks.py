"""Locks on files, waited for only so long: whoever has one may be suspended, or be somebody who means harm."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from vmjob import interrupt

_SOON = 2.0  # seconds; a longer wait is told


def wait(lock: int, how: int, path: Path, patience: float, note: Optional[Callable[[str], None]] = None) -> None:
    """flock ``lock``, which is the open file ``path``, within ``patience`` seconds. ``note`` is told of a wait that is
    not short. Raises TimeoutError, another OSError where there are no locks, and whatever a signal raises."""
    begun, pause = time.monotonic(), 0.001
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        waited = time.monotonic() - begun
        if waited >= patience:
            raise TimeoutError(errno.ETIMEDOUT, f"another process has had this lock for {patience:.0f} s (which: fuser "
                                                "FILE; it may be suspended)", str(path))
        if note and waited >= _SOON:
            note(f"waits for another process that has a lock (which: fuser {path})")
            note = None
        interrupt.sleep(pause)
        pause = min(pause * 2, 0.1)
