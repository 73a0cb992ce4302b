"""A layer becomes the qcow2 that QEMU stacks on the disk below it.

It takes time, room and memory by what the layer changes, whatever the size of the image: new blocks are unpacked, and
copied ones read through qemu-nbd in the order in which they lie below, so that each cluster there is unpacked once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

from vmjob import opened
from vmjob.errors import ScratchFull
from vmjob.image import nbd, qcow2
from vmjob.image.delta import BLOCK, NEW, ZEROS, Delta
from vmjob.progress import Bar
from vmjob.units import format_size

_ZERO = bytes(BLOCK)
_WINDOW = nbd.MAX_READ // BLOCK
_NEAR = 16  # blocks between two that are read at once rather than apart: a cluster of a packed base


def becomes(layer: Delta) -> int:
    """The length in bytes of what ``materialise`` writes: its tables and all blocks, new and copied. On the disk it
    takes less where some of them are zeros."""
    return _layout(layer).total


def materialise(layer: Delta, below: Sequence[tuple[str, str]], target: Path, bar: Optional[Bar] = None) -> None:
    """Write at ``target`` the qcow2 that holds what ``layer`` changes in the chain ``below`` (paths and formats);
    ``bar`` hears of the bytes that are written, new and copied. Raises ImageCorrupt, ScratchFull, and
    CommandMissing or HostError where qemu-nbd is missing or fails."""
    runs, sparse = layer.runs, _layout(layer)
    free = os.statvfs(target.parent)
    if free.f_bavail * free.f_frsize * 95 // 100 < sparse.total:  # told before it is written; others need room too
        name = Path(opened.named(str(layer.path))).name
        raise ScratchFull(f"{target.parent}: no space for {format_size(sparse.total)}, which the layer {name} becomes",
                          "make room there, or set VMJOB_CACHE to a larger disk")
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, out)
        sparse.write_tables(out)
        _write_new(layer, sparse.data_at, out, bar or Bar())
        if runs.copied:
            reader = stack.enter_context(nbd.serve(below))
            _write_copied(layer, sparse.data_at, out, reader, bar or Bar())


def _layout(layer: Delta) -> qcow2.Sparse:
    return qcow2.Sparse(layer.virtual_size, ((at, count, source != ZEROS) for at, count, source in layer.runs))


def _write_new(layer: Delta, at: int, out: int, bar: Bar) -> None:
    """The new blocks, which lie among the copied ones in the order of all runs."""
    pieces, data = layer.pieces(), memoryview(b"")
    for count, source in zip(layer.runs.counts, layer.runs.sources):
        length = 0 if source == ZEROS else count * BLOCK
        if source == NEW:
            done = 0
            while done < length:
                data = data or memoryview(next(pieces))
                some = min(len(data), length - done)
                _write(out, data[:some], at + done)
                data, done = data[some:], done + some
                bar.advance(some)
        at += length
    for _ in pieces:  # it sees to it that nothing follows
        pass


def _write_copied(layer: Delta, at: int, out: int, reader: nbd.Reader, bar: Bar) -> None:
    windows: list[list[tuple[int, int, int]]] = []

    def wanted() -> Iterator[tuple[int, int]]:
        for window in _windows(_copies(layer, at)):
            windows.append(window)
            first, end = window[0][0], max(source + count for source, count, _ in window)
            yield first * BLOCK, (end - first) * BLOCK

    for data in reader.reads(wanted()):
        window, view = windows.pop(0), memoryview(data)
        for source, count, place in window:
            start = (source - window[0][0]) * BLOCK
            _write(out, view[start:start + count * BLOCK], place)
            bar.advance(count * BLOCK)


def _copies(layer: Delta, at: int) -> list[tuple[int, int, int]]:
    """Source, count and place in the file of all copied runs, by source; long ones in parts."""
    found = []
    for _, count, source in layer.runs:
        if source < ZEROS:
            found += [(source + start, min(_WINDOW, count - start), at + start * BLOCK)
                      for start in range(0, count, _WINDOW)]
        if source != ZEROS:
            at += count * BLOCK
    return sorted(found)


def _windows(copies: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """What is read at once: neighbours, in all at most a window."""
    window: list[tuple[int, int, int]] = []
    end = 0
    for source, count, place in copies:
        if window and (source > end + _NEAR or source + count > window[0][0] + _WINDOW):
            yield window
            window, end = [], 0
        window.append((source, count, place))
        end = max(end, source + count)
    if window:
        yield window


def _write(out: int, data: memoryview, at: int) -> None:
    """Whole blocks. What is zero stays a hole of the file: it reads the same, and hides what is below as well."""
    start, end = 0, len(data)
    while start < end:
        stop = start
        while stop < end and data[stop:stop + BLOCK] != _ZERO:
            stop += BLOCK
        while start < stop:
            start += os.pwrite(out, data[start:stop], at + start)
        start = stop + BLOCK
