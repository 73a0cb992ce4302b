"""A private folder for one run in the slot's scratch, and the right to an output folder.

Both rest on flock: the kernel lets go of it however the holder ends, kill -9 included.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Optional

from vmjob.core import interrupt, locks
from vmjob.core.errors import FolderBusy, ScratchFull, SlotError
from vmjob.core.files import FULL, free_bytes, real_kind, remove_tree
from vmjob.core.machinetext import is_number
from vmjob.core.units import format_size

log = logging.getLogger("vmjob.slot")

PREFIX = "vmjob-run-"
_UNBORN = ".vmjob-new-"
_LOCK = ".lock"
_CLAIM = ".vmjob.lock"
_UNBORN_AGE = 600  # seconds after which a folder that never got its lock is a dead run's
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def scratch(slot_folder: Path, needed: int = 0) -> Iterator[Path]:
    """A fresh folder ``vmjob-run-XXXX`` (0700) in the slot's scratch, gone with all in it at the end.

    First removes what dead runs of this user left there. ``needed``: bytes that must be free.
    Raises ScratchFull, or SlotError when the folder cannot be written.
    """
    sweep(slot_folder)
    check_free(slot_folder, needed)
    with ExitStack() as stack:
        with interrupt.shielded():
            folder, lock = _create(slot_folder)
            stack.callback(_remove, folder, lock)
        yield folder


def _remove(folder: Path, lock: int) -> None:
    with interrupt.shielded():
        try:
            remove_tree(folder)
        except OSError as stuck:
            log.warning("could not remove %s: %s", folder, stuck)
        finally:
            os.close(lock)


def is_whole(folder: Path) -> bool:
    """Is a run's folder still there, with its lock?"""
    return real_kind(folder / _LOCK) == "file"


def _create(slot_folder: Path) -> tuple[Path, int]:
    """Locked before it has the name that sweepers look for, so that nobody takes it for dead."""
    unborn: Optional[Path] = None
    try:
        unborn = Path(tempfile.mkdtemp(prefix=_UNBORN, dir=slot_folder))
        lock = os.open(unborn / _LOCK, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
        try_lock(lock)
        return unborn.rename(slot_folder / (PREFIX + unborn.name[len(_UNBORN):])), lock
    except OSError as refused:
        if unborn is not None:
            with suppress(OSError):
                remove_tree(unborn)
        if refused.errno in FULL:
            raise ScratchFull(f"{slot_folder}: {refused.strerror}", "free some space there, or use another folder") \
                from refused
        raise SlotError(f"{slot_folder}: a folder for the run cannot be made: {refused.strerror}",
                        "check that the scratch folder is there and may be written") from refused


def sweep(slot_folder: Path) -> list[Path]:
    """Remove the run folders there that belong to us and that nobody holds; those removed. Never raises."""
    removed = []
    try:
        found = [path for path in slot_folder.iterdir() if path.name.startswith((PREFIX, _UNBORN))]
    except OSError:
        return []
    for folder in found:
        try:
            if _remove_if_dead(folder):
                removed.append(folder)
                log.info("removed %s, left by a run that was killed", folder)
        except OSError as stuck:
            log.warning("could not remove %s, left by a run that was killed: %s", folder, stuck)
    return removed


def _remove_if_dead(folder: Path) -> bool:
    found = os.lstat(folder)
    if real_kind(folder) != "folder" or found.st_uid != os.geteuid():
        return False
    try:
        lock = os.open(folder / _LOCK, _OPEN)
    except FileNotFoundError:
        # a run folder without a lock is half removed; an unborn one may get its lock any moment
        if folder.name.startswith(_UNBORN) and time.time() - found.st_mtime < _UNBORN_AGE:
            return False
        remove_tree(folder)
        return True
    except OSError as strange:
        if strange.errno != errno.ELOOP:  # a link instead of a lock: not ours to follow
            raise
        return False
    try:
        if not try_lock(lock):
            return False
        if folder.name.startswith(_UNBORN) and time.time() - found.st_mtime < _UNBORN_AGE:
            return False  # made, and not locked yet
        remove_tree(folder)
        return True
    finally:
        os.close(lock)


def try_lock(handle: int) -> Optional[bool]:
    """True: the lock is ours; False: another holds it; None: this file system has no locks."""
    try:
        return locks.attempt(handle)
    except OSError as unable:
        log.warning("this file system has no locks (%s): two runs in one folder go unseen", unable.strerror)
        return None


def check_free(folder: Path, needed: int) -> None:
    """Raises ScratchFull when fewer than ``needed`` bytes are free in ``folder``, SlotError when it is not there."""
    try:
        free = free_bytes(folder)
    except OSError as missing:
        raise SlotError(f"{folder}: {missing.strerror}", "check the path of the scratch folder") from missing
    if free < needed:
        raise ScratchFull(f"{folder} has {format_size(free)} free, the run needs {format_size(needed)}",
                          "free some space there, or lower resources.disk")


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """The sole right to write outputs into ``folder`` (made where missing) until the end of the with block.

    Raises FolderBusy naming the process that has it, SlotError when the folder cannot be written.
    """
    path = folder / _CLAIM
    handle = _claimed(folder, path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield folder
    finally:
        with suppress(OSError):  # the folder may be gone; that is no failure of this run's
            path.unlink()  # before the lock goes, or the next holder's file would be removed
        os.close(handle)


def _claimed(folder: Path, path: Path) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = locks.open_own(path)
        except OSError as refused:
            raise SlotError(f"{folder}: cannot be written: {refused.strerror}",
                            "choose another output folder") from refused
        if try_lock(handle) is False:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            who = f"process {holder}" if is_number(holder) else "another process"
            raise FolderBusy(f"{folder}: {who} is running a job in this folder",
                             "wait for it, or give this run a folder of its own")
        try:
            if os.path.samestat(path.lstat(), os.fstat(handle)):
                return handle
        except OSError:
            pass
        os.close(handle)  # its last holder removed the file between our open and our lock
