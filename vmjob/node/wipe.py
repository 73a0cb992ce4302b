"""Removes folders that others may write to, and measures them, by open descriptors alone: a name that somebody changes
meanwhile leads nowhere else. No link is followed, and no other mount is entered, bound or not."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = ".vmjob-gone."
_BATCH = 4096  # names that are held in memory at a time
_DEEP = 64  # folders that are open at a time while they are measured
_NOT_A_FOLDER = (errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class Size:
    """``bytes`` on the disk, ``files`` of any kind but folders. ``more``: not all of it was seen."""

    bytes: int = 0
    files: int = 0
    more: bool = False

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.files + other.files, self.more or other.more)


def names(folder: int) -> list[str]:
    """All names in an open folder, sorted; none where we may not read it."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except OSError:
        return []


def measure(folder: int, deep: int = 0) -> Size:
    """What is in an open folder and below it. Never raises OSError."""
    total, mount = Size(), mount_of(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    # of several names one is counted where they are many
                    total += Size(found.st_blocks * 512 // max(found.st_nlink, 1), 1)
                elif deep >= _DEEP:
                    total += Size(more=True)
                else:
                    total += _below(folder, entry.name, mount, deep + 1)
    except OSError:
        return total + Size(more=True)
    return total


def _below(folder: int, name: str, mount: str, deep: int) -> Size:
    try:
        opened = os.open(name, FOLDER, dir_fd=folder)
    except OSError:
        return Size(more=True)
    try:
        return measure(opened, deep) if mount_of(opened) == mount else Size(more=True)
    finally:
        os.close(opened)


def wipe(parent: int, name: str, enter_mount: bool) -> bool:
    """Remove ``name`` in the open folder ``parent`` with all that is in it, however deep; a second run finishes what a
    killed one has begun. ``enter_mount``: also where it is a mount's root, which then stays, empty. False where
    something stays: a mount. Raises OSError."""
    try:
        _open_up(parent, name)
        top = os.open(name, FOLDER, dir_fd=parent)
    except OSError as other:
        if other.errno in _NOT_A_FOLDER:
            os.unlink(name, dir_fd=parent)
        elif other.errno != errno.ENOENT:
            raise
        return True
    try:
        mount = mount_of(top)
        if mount != mount_of(parent) and not enter_mount:
            return False
        while _pass(top, mount):
            pass
    finally:
        os.close(top)
    return _rmdir(parent, name)


def _pass(top: int, mount: str) -> bool:
    """One batch of the names in ``top``; was any of them removed?"""
    with os.scandir(top) as entries:
        batch = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _BATCH)]
    return any([_remove(top, top, name, is_folder, mount) for name, is_folder in batch])


def _remove(top: int, folder: int, name: str, is_folder: bool, mount: str) -> bool:
    """Of what lies in ``folder``: a file goes, a folder in ``top`` is emptied, one that is deeper comes up to ``top``.
    So never more than two folders are open, however deep they lie."""
    try:
        if is_folder:
            _open_up(folder, name)
        if not is_folder:
            os.unlink(name, dir_fd=folder)
        elif folder == top:
            return _flatten(top, folder, name, mount)
        else:
            os.rename(name, _GONE + secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=top)
    except FileNotFoundError:
        pass
    except IsADirectoryError:  # it was a file a moment ago: the next pass sees what it is now
        pass
    except OSError as refused:
        if refused.errno == errno.EXDEV:  # a folder of an overlay's lower layer stays where it is
            return _flatten(top, folder, name, mount)
        if refused.errno == errno.EBUSY:  # a mount
            return False
        raise
    return True


def _flatten(top: int, parent: int, name: str, mount: str) -> bool:
    """Empty a folder, and remove it; was anything removed?"""
    try:
        folder = os.open(name, FOLDER, dir_fd=parent)
    except OSError as other:
        if other.errno not in (*_NOT_A_FOLDER, errno.ENOENT):
            raise
        return True  # a link or a file by now
    try:
        if mount_of(folder) != mount:
            return False
        progress = False
        with os.scandir(folder) as entries:
            for entry in islice(entries, _BATCH):
                progress |= _remove(top, folder, entry.name, entry.is_dir(follow_symlinks=False), mount)
    finally:
        os.close(folder)
    return _rmdir(parent, name) or progress


def _open_up(parent: int, name: str) -> None:
    """For one who is not root, a folder of hers whose mode keeps her out. Raises OSError."""
    if os.geteuid():
        with suppress(NotADirectoryError):
            folder = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                Path(f"/proc/self/fd/{folder}").chmod(0o700)
            finally:
                os.close(folder)


def _rmdir(parent: int, name: str) -> bool:
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as full:
        if full.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR):
            raise
        return False
    return True


def mount_of(handle: int) -> str:
    """Which mount an open folder is of: a bound folder has the device of where it comes from, but not its mount."""
    with suppress(OSError), Path(f"/proc/self/fdinfo/{handle}").open() as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return line
    return str(os.fstat(handle).st_dev)
