"""Locks on files, waited for only so long: whoever has one may be suspended, or be somebody who means harm.

The only place that calls flock (a test keeps it so). It can be held by who may merely read a file: so a lock lies in a
file that nobody but its owner may open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

from vmjob.core import interrupt
from vmjob.core.machinetext import read

ALONE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
_SOON = 2.0  # seconds; a longer wait is reported
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # follows no link, and no pipe in its place holds us


def open_own(path: Path, make: bool = True) -> int:
    """The lock file, made when needed (unless not ``make``), which nobody else may open. Raises OSError, also where it
    is another's or no file; whoever calls closes it."""
    lock = os.open(path, (os.O_CREAT if make else 0) | os.O_RDWR | _SAFE, 0o600)
    try:
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "a lock that belongs to somebody else, or is no file", str(path))
        if found.st_mode & 0o077:
            os.fchmod(lock, 0o600)
    except BaseException:
        os.close(lock)
        raise
    return lock


def open_for_reading(path: Path) -> int:
    """A file that is there, of whoever's: for a lock that is tried and not waited for. Raises OSError."""
    return os.open(path, os.O_RDONLY | _SAFE)


def attempt(lock: int, how: int = ALONE) -> bool:
    """Lock it if that can be done at once. Raises OSError where there are no locks."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(lock: int) -> str:
    """The process that has the lock of the open file ``lock``, in words: its number, its name, and whether it stands
    still. By /proc/locks (proc(5)), which knows no process of another namespace."""
    found = os.fstat(lock)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError):
        for line in read(Path("/proc/locks")).split("\n"):
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5] == place and int(words[4]) > 0:
                name, _, rest = read(Path(f"/proc/{words[4]}/stat")).partition("(")[2].rpartition(")")
                return f"process {words[4]} ({name}{', suspended' if rest.split()[0] in 'tT' else ''})"
    return "another process, perhaps a suspended one,"


def wait(lock: int, how: int, path: Path, patience: float, note: Optional[Callable[[str], None]] = None,
         what: str = "fetches or verifies this image") -> None:
    """Lock ``lock``, which is the open file ``path``, within ``patience`` seconds. ``note`` hears of a wait that is not
    short, for another process that does ``what``. Raises TimeoutError, another OSError where there are no locks, and
    whatever a signal raises."""
    begun, pause = time.monotonic(), 0.001
    while not attempt(lock, how):
        waited = time.monotonic() - begun
        if waited >= patience:
            raise TimeoutError(errno.ETIMEDOUT, f"{holder(lock)} has had this lock for {patience:.0f} s", str(path))
        if note and waited >= _SOON:
            note(f"waits for {holder(lock)} that {what}; it has had {path} for {waited:.0f} s")
            note = None
        interrupt.sleep(pause)
        pause = min(pause * 2, 0.1)


@contextlib.contextmanager
def held(path: Path, patience: float, how: int = ALONE, note: Optional[Callable[[str], None]] = None,
         what: str = "works here") -> Iterator[None]:
    """The lock file ``path`` of our own is locked until the end of the with block. Raises as ``open_own`` and
    ``wait``."""
    lock = open_own(path)
    try:
        wait(lock, how, path, patience, note, what)
        yield
    finally:
        os.close(lock)
