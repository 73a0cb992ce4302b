"""Which files a program may open, and that it may not speak TCP: held by the kernel, for programs started by ordinary
users. No library and no privilege is needed, and nothing fails where the kernel has none of it.

Linux' Documentation/userspace-api/landlock.rst, linux/landlock.h. A rule is of the file that had the name when the rule
was made: another file that is put in its place meanwhile is not let in.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Optional

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all architectures
_VERSION = 1  # flag of _CREATE: which ABI
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_CHANGES = sum(1 << bit for bit in range(4, 13))  # removing and making of files of each kind
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL  # what a rule of a file, no folder, may hold
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPED = 3  # abstract sockets and signals of others
_SINCE = ((1, (1 << 13) - 1), (2, _REFER), (3, _TRUNCATE), (5, _IOCTL))  # ABI → the rights that it knows


@dataclass(frozen=True)
class Fence:
    """Paths; a folder stands for all below it. ``programs``: read and run; ``read``; ``write``: read, written, made and
    removed. ``tcp``: TCP is left alone. What does not exist is left out."""

    programs: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    tcp: bool = False


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 wants it said
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


@cache
def abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    found = _syscall(_CREATE, None, 0, _VERSION)
    return max(found, 0)


@contextmanager
def ruleset(fence: Optional[Fence]) -> Iterator[Optional[int]]:
    """A descriptor of the rules of ``fence``, for ``restrict`` in a child; None without, or where the kernel has no
    Landlock."""
    version = abi() if fence else 0
    if not fence or not version:
        yield None
        return
    known = sum(rights for since, rights in _SINCE if version >= since)
    wanted = _Ruleset(known, 0 if fence.tcp or version < 4 else _BIND_TCP | _CONNECT_TCP,
                      _SCOPED if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _syscall(_CREATE, ctypes.byref(wanted), size, 0)
    if rules < 0:  # switched off after boot, or a limit of this kernel
        yield None
        return
    with ExitStack() as stack:
        stack.callback(os.close, rules)
        run = _EXECUTE | _READ | _LIST
        for paths, rights in ((fence.programs, run), (fence.read, _READ | _LIST),
                              (fence.write, _READ | _LIST | _WRITE | _CHANGES | _TRUNCATE | _IOCTL)):
            for path in paths:
                _allow(rules, path, rights & known)
        yield rules


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_FILES
        rule = _Beneath(rights, handle)
        _syscall(_ADD, rules, _PATH_BENEATH, ctypes.byref(rule), 0)  # not added: less is let in
    finally:
        os.close(handle)


def restrict(rules: int) -> None:
    """Put this process, and all that it starts, behind the rules; for good. For a child before it becomes a program.
    Raises OSError."""
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _syscall(_RESTRICT, rules, 0) < 0:
        raise OSError(ctypes.get_errno(), "Landlock")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *words: object) -> int:
    filled = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    found: int = _libc().syscall(ctypes.c_long(number), *filled)
    return found
