"""Locks on files, waited for only so long: whoever has one may be suspended, or be somebody who means harm."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from vmjob import interrupt

_SOON = 2.0  # seconds; a longer wait is told


def open_own(path: Path) -> int:
    """The lock file, made when needed, which nobody else may open: a lock is to be had by reading alone. Raises
    OSError; whoever calls closes it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(OSError):
        found = os.fstat(lock)
        if found.st_mode & 0o077 and found.st_uid == os.getuid():
            os.fchmod(lock, 0o600)
    return lock


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
            note(f"waits for another process that fetches or verifies this image (which: fuser {path})")
            note = None
        interrupt.sleep(pause)
        pause = min(pause * 2, 0.1)
