"""Another date, for the fast tests (.ci/later): libfaketime moves the clock of all processes, and this what libfaketime
leaves out in Python's. A .pth file of .venv runs it wherever FAKETIME is set.

- time.sleep() of Python 3.11 and later fails with EINVAL under libfaketime 0.9.10 (Debian 12), now and then.
- The kernel gives files the times of the true clock, and libfaketime moves them, or not, by the C library's release.
  They are moved here (and not there: NO_FAKE_STAT), so that a file that was just written is a new one.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

OFFSET = float(os.environ.get("FAKETIME") or 0)  # seconds
_TIMES = ("st_atime", "st_mtime", "st_ctime")
_scandir = os.scandir


def _moved(found: os.stat_result) -> os.stat_result:
    extra = {key: getattr(found, key) for key in dir(found) if key.startswith("st_")}
    for name in _TIMES:
        extra[f"{name}_ns"] = getattr(found, f"{name}_ns") + round(OFFSET * 1e9)
        extra[name] = getattr(found, name) + OFFSET
    return os.stat_result([*found[:7], *(int(extra[name]) for name in _TIMES)], extra)


def _reader(true: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    return lambda *args, **more: _moved(true(*args, **more))


class _Entry:
    """An os.DirEntry."""

    def __init__(self, true: os.DirEntry[Any]) -> None:
        self._true = true

    def __getattr__(self, name: str) -> Any:
        return getattr(self._true, name)

    def __fspath__(self) -> Any:
        return self._true.path

    def stat(self, **more: Any) -> os.stat_result:
        return _moved(self._true.stat(**more))


class _Entries:
    """What os.scandir() gives."""

    def __init__(self, *args: Any) -> None:
        self._true = _scandir(*args)
        self.close = self._true.close

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return _Entry(next(self._true))

    def __enter__(self) -> Iterator[Any]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


def move() -> None:
    """From now on, for the rest of this process."""
    for name, ours in (("stat", _reader(os.stat)), ("lstat", _reader(os.lstat)), ("fstat", _reader(os.fstat)),
                       ("scandir", _Entries)):
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if getattr(os, name) in able:
                able.add(ours)
        setattr(os, name, ours)
    time.sleep = _sleep


if OFFSET and time.sleep.__module__ != __name__:  # Python may read a .pth file twice
    move()
