"""Locks on files, waited for only so long: whoever has one may be suspended, or be somebody who means harm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmjob.errors import FolderBusy
from vmjob.locks import wait as wait

_PATIENCE = 600.0  # seconds for which another may change a store


def open_own(path: Path) -> int:
    """The lock file, made when needed, which nobody else may open: a lock is to be had by reading alone. Raises
    OSError; whoever calls closes it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(OSError):
        found = os.fstat(lock)
        if found.st_mode & 0o077 and found.st_uid == os.getuid():
            os.fchmod(lock, 0o600)
    return lock


@contextlib.contextmanager
def held(path: Path, how: int) -> Iterator[None]:
    """The lock ``path`` of a store, for the with block. Raises FolderBusy."""
    with path.open("a") as file:
        try:
            wait(file.fileno(), how, path, _PATIENCE)
        except TimeoutError as busy:
            raise FolderBusy(f"{path}: {busy.strerror}", "end that process, or let it go on (kill -CONT)") from busy
        yield
