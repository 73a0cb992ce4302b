"""Files that are opened once and read from then on by that descriptor, whoever reads them: so what was verified is what
is used, whatever another user has put at its name meanwhile.

A program that we start gets the descriptor, and /proc/self/fd/N in the place of the file's name. Opening that leads to
the file that is open, never to a name. Not QEMU's own way (-add-fd and /dev/fdset), which serves its block devices
alone: kernels and initrds it opens by fopen, and qemu-img and qemu-nbd have no sets. This way serves all of them, in
every version; and who opens it so has an open file of its own, whose locks end with it and not with us.

This holds against others. The account that a file belongs to can always write into it, verified or not, and so can
root: what is written after verification reaches the guest, and nothing here prevents it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmjob.errors import VmjobError

_PLACE = re.compile(r"/proc/self/fd/([0-9]+)")
_STREAMS = 3  # a child's own are put over these numbers


@dataclass(frozen=True)
class Opened:
    """A file that is open: its ``name`` when it was opened, for people, and ``place``, by which it is read here and in
    programs that get its number (``numbers``)."""

    name: Path
    place: Path


def hold(path: Path, stack: ExitStack, *, follow: bool = True) -> Opened:
    """Open a regular file for reading until ``stack`` ends. Raises OSError; where it is another kind of file too, or
    without ``follow`` a link."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if number < _STREAMS:  # we were started without
            low, number = number, fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _STREAMS)
            os.close(low)
    except BaseException:
        os.close(number)
        raise
    stack.callback(os.close, number)
    return Opened(path, Path(f"/proc/self/fd/{number}"))


def numbers(*paths: str) -> list[int]:
    """The descriptors that a program needs to open ``paths``: of those that are places of open files."""
    return sorted({int(found.group(1)) for path in paths if (found := _PLACE.fullmatch(path))})


def named(text: str) -> str:
    """``text`` for people: files by the names that they have now."""
    return _PLACE.sub(lambda found: _name(found.group()), text)


def legend(text: str) -> str:
    """Which files the places in ``text`` are, to stand behind it; empty where there are none."""
    places = dict.fromkeys(found.group() for found in _PLACE.finditer(text))
    return "".join(f"  # {place}: {_name(place)}" for place in places)


@contextmanager
def naming() -> Iterator[None]:
    """Failures on their way out name files as people do."""
    try:
        yield
    except VmjobError as failure:
        failure.message, failure.hint = named(failure.message), named(failure.hint)
        raise
    except OSError as failure:
        if isinstance(failure.filename, str):
            failure.filename = named(failure.filename)
        raise


def _name(place: str) -> str:
    with suppress(OSError):
        return str(Path(place).readlink())
    return place
