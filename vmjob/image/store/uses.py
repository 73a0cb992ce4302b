"""Who uses what in a cache, and when it was used last.

A file for each name: its users hold a shared flock on it, which the kernel ends with them, and its mtime is the last
use. Whoever evicts takes the lock for itself alone, without waiting, and removes the file with what it stands for.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from vmjob.core import locks

log = logging.getLogger("vmjob.image")

_PATIENCE = 30.0  # seconds; who evicts has a lock for an instant


class Uses:
    """The files are in ``folder``, which is made when needed. ``theirs``: it is somebody else's, to whom it is told
    that we use something, as far as that goes without writing, and without waiting for anybody who has the lock."""

    def __init__(self, folder: Path, *, theirs: bool = False) -> None:
        self.folder, self._theirs = folder, theirs

    def take(self, name: str) -> Optional[int]:
        """From now on ``name`` is used, until ``leave`` or our end. None where this cannot be told (a read-only folder:
        nobody evicts there). Raises TimeoutError naming the file that somebody has locked; in a cache that others may
        read, where it may be anybody who holds up the owner, a new file takes its place."""
        while True:
            try:
                lock = _open(self.folder / name, read_only=self._theirs)
            except OSError:
                return None
            try:
                locks.wait(lock, locks.SHARED, self.folder / name, 0 if self._theirs else _PATIENCE)
            except BaseException as failure:  # a signal, while we waited
                os.close(lock)
                if isinstance(failure, TimeoutError) and self._open_to_others():
                    log.warning("%s: %s: another file takes its place", self.folder / name, failure.strerror)
                    self.forget(name)
                    continue
                if isinstance(failure, OSError) and (self._theirs or not isinstance(failure, TimeoutError)):
                    return None
                raise
            if self._same(name, lock):
                self._touch(lock)
                return lock
            os.close(lock)  # it was evicted between our open and our lock

    def leave(self, lock: int) -> None:
        """The end of what ``take`` began: this was the last use."""
        self._touch(lock)
        os.close(lock)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether nobody uses ``name``; until the end of the with block nobody begins to."""
        try:
            lock = _open(self.folder / name)
        except OSError:
            yield False
            return
        if not _locked(lock):
            yield False
            return
        try:
            yield self._same(name, lock)
        finally:
            os.close(lock)

    def free(self, name: str) -> bool:
        """Whether nobody uses ``name`` at this moment; writes nothing."""
        try:
            lock = locks.open_for_reading(self.folder / name)
        except OSError:
            return True
        free = _locked(lock)
        if free:
            os.close(lock)
        return free

    def last(self, name: str) -> Optional[float]:
        """When it was used last, in seconds since 1970; None where nobody knows."""
        try:
            return (self.folder / name).stat().st_mtime
        except OSError:
            return None

    def forget(self, name: str) -> None:
        """For who has claimed it and removed it."""
        (self.folder / name).unlink(missing_ok=True)

    def _touch(self, lock: int) -> None:
        with contextlib.suppress(OSError):  # it cannot be written
            if not self._theirs:
                os.utime(lock)

    def _open_to_others(self) -> bool:
        with contextlib.suppress(OSError):
            return not self._theirs and bool(self.folder.parent.stat().st_mode & 0o011)
        return False

    def _same(self, name: str, lock: int) -> bool:
        try:
            return os.path.samestat((self.folder / name).lstat(), os.fstat(lock))
        except OSError:
            return False


def _open(path: Path, read_only: bool = False) -> int:
    """For a lock reading is enough. Raises OSError."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if read_only:
        return os.open(path, os.O_RDONLY | flags)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR | flags, 0o644)
    except OSError:
        return os.open(path, os.O_RDONLY | flags)


def _locked(lock: int) -> bool:
    """For us alone, without waiting; closes ``lock`` where it is not to be had."""
    with contextlib.suppress(OSError):
        if locks.attempt(lock):
            return True
    os.close(lock)
    return False
