"""Writes tar archives: the job's inputs, and whatever else is to travel as one file.

GNU format, which busybox and GNU tar read alike (busybox skips pax headers, and with them long names).
The order is sorted and the owner root, so that the same files make the same bytes; the kernel moves the contents.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from vmjob.core.errors import InputMissing, JobError, ScratchFull, VmjobError
from vmjob.core.files import FULL, Advance, copy_range
from vmjob.core.model import Input
from vmjob.core.progress import Reporter
from vmjob.stage.archive.collect import Entry, collect

_BLOCK = 512


def pack_inputs(inputs: tuple[Input, ...], base: Path, target: Path, reporter: Reporter) -> int:
    """Pack the job's inputs, relative to ``base``, into the archive ``target``; its size in bytes, whole blocks.

    What travels under which name, and what becomes of links: see collect.py.
    Raises InputMissing or JobError naming the job's key, ScratchFull; then ``target`` is removed.
    """
    entries = collect(inputs, base, target)
    total = sum(entry.state.st_size for entry in entries if _has_data(entry))
    with reporter.bar("inputs", total) as bar:
        return write_archive(entries, target, bar.advance)


def write_archive(entries: Iterable[Entry], target: Path, advance: Advance) -> int:
    """Write these entries to a new archive ``target``; its size in bytes. Errors as of pack_inputs."""
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as refused:
        raise JobError(f"{target}: {refused.strerror}", "choose a folder that may be written") from refused
    position = 0
    try:
        for entry in entries:
            position = _append(handle, position, entry, advance)
        os.ftruncate(handle, position + 2 * _BLOCK)
        return position + 2 * _BLOCK
    except OSError as refused:
        target.unlink(missing_ok=True)
        if refused.errno in FULL:
            raise ScratchFull(f"{target}: {refused.strerror}", "free some space there") from refused
        raise JobError(f"{target}: {refused}", "check the folder it is written to") from refused
    except VmjobError:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _has_data(entry: Entry) -> bool:
    return entry.link is None and stat.S_ISREG(entry.state.st_mode)


def _append(archive: int, position: int, entry: Entry, advance: Advance) -> int:
    """One member at ``position``; where the next one goes."""
    if not _has_data(entry):
        return _put(archive, header(entry.name, entry.state, entry.link), position)
    try:
        source = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as refused:
        raise InputMissing(f"{entry.path}: {refused.strerror}", "check that the file is there and may be read") \
            from refused
    try:
        before = os.fstat(source)
        size = before.st_size
        data = _put(archive, header(entry.name, before, None), position)
        copied = copy_range(source, archive, 0, data, size, advance)
        after = os.fstat(source)
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if copied != size or not same or not stat.S_ISREG(before.st_mode):
            raise JobError(f"{entry.path} changed while it was packed",
                           "wait until nothing writes to it, then try again")
    finally:
        os.close(source)
    behind = data + -(-size // _BLOCK) * _BLOCK
    os.ftruncate(archive, behind)  # the rest of the last block reads as zeros
    return behind


def _put(archive: int, data: bytes, position: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(archive, data[written:], position + written)
    return position + len(data)


def header(name: str, state: os.stat_result, link: Optional[str]) -> bytes:
    """The blocks before a member's data: GNU long name blocks where needed, then its header."""
    folder = link is None and stat.S_ISDIR(state.st_mode)
    raw = os.fsencode(name) + (b"/" if folder else b"")
    goal = os.fsencode(link or "")
    blocks = b""
    for text, kind in ((goal, b"K"), (raw, b"L")):
        if len(text) > 100:
            padded = text + b"\0" * (_BLOCK - len(text) % _BLOCK)
            blocks += _block(b"././@LongLink", 0o644, len(text) + 1, 0, kind, b"") + padded
    kind = b"2" if link is not None else b"5" if folder else b"0"
    size = state.st_size if kind == b"0" else 0
    # readable and writable for the guest's user whoever owned it here; no set-uid bits travel
    mode = 0o777 if link is not None else state.st_mode & 0o777 | (0o700 if folder else 0o600)
    return blocks + _block(raw[:100], mode, size, int(state.st_mtime), kind, goal[:100])


def _block(name: bytes, mode: int, size: int, mtime: int, kind: bytes, link: bytes) -> bytes:
    fields = (name.ljust(100, b"\0"), _octal(mode, 8), _octal(0, 8), _octal(0, 8), _octal(size, 12),
              _octal(min(max(mtime, 0), 8**11 - 1), 12), b" " * 8, kind, link.ljust(100, b"\0"), b"ustar  \0")
    block = bytearray(b"".join(fields).ljust(_BLOCK, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(value: int, width: int) -> bytes:
    if value < 8**(width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")  # GNU's way beyond 8 GiB
