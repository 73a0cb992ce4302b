"""A layer as it travels: a file that says, block by block, how a disk differs from the chain of disks below it.

The file, of which strangers may have written every byte::

    vmjob-delta 1\\n
    one line of JSON: below (digests of disk and layers that it belongs on), virtual_size, block, runs, packed, new,
    copied (how many blocks each)
    packed bytes: .xz of three columns of ``runs`` 32-bit numbers (little-endian)
    the new blocks in the order of the runs, cut every PIECE bytes; each piece: length (32 bits), .xz

A run is a number of blocks: left as they are since the run before (column 1), then changed (column 2), and where the
changed ones come from (column 3): the chain below from this block on, or NEW, or ZEROS.
"""

from __future__ import annotations

import json
import lzma
import os
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from vmjob.core.errors import ImageCorrupt, ImageRefused
from vmjob.core.units import MIB

BLOCK = 4096
PIECE = 8 * MIB
ZEROS, NEW = 0xFFFFFFFE, 0xFFFFFFFF
MAX_SIZE = 4 * 2**40  # bytes of a disk
MAX_RUNS = 2**20  # what a node needs for them in memory is about 200 MB
MAX_COPIES, _SOME_COPIES = 4, 2**18  # of each block below on average, and blocks that anybody may have more
_MAGIC, _HEADER = b"vmjob-delta 1\n", 4096
_MEMORY = 64 * MIB  # of the decoder
# New files are mostly programs: with their jumps and calls made absolute they pack a tenth better. Preset 4 would save
# another 8 %, and take three times as long.
_FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1}]
_AGAIN = "it was changed on the way, or made by a program that is wrong: fetch or make it again"

From = TypeVar("From")
To = TypeVar("To")


class Runs:
    """What changes, in order and without overlap: ``targets``, ``counts`` and ``sources``, each a column of numbers of
    blocks. A source is the first block below, or NEW, or ZEROS."""

    def __init__(self) -> None:
        self.targets, self.counts, self.sources = array("I"), array("I"), array("I")

    def add(self, target: int, source: int) -> None:
        """One more block, behind all others; what continues the last run becomes a part of it."""
        if self.targets and self.targets[-1] + self.counts[-1] == target:
            last = self.sources[-1]
            if last == source if max(last, source) >= ZEROS else last + self.counts[-1] == source:
                self.counts[-1] += 1
                return
        self.append(target, 1, source)

    def append(self, target: int, count: int, source: int) -> None:
        self.targets.append(target)
        self.counts.append(count)
        self.sources.append(source)

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.targets, self.counts, self.sources)

    def blocks(self, kind: Callable[[int], bool]) -> int:
        """How many blocks have a source for which ``kind`` is true."""
        return sum(count for count, source in zip(self.counts, self.sources) if kind(source))

    @property
    def new(self) -> int:
        return self.blocks(lambda source: source == NEW)

    @property
    def copied(self) -> int:
        return self.blocks(lambda source: source < ZEROS)


@dataclass(frozen=True)
class Delta:
    """A layer that was read and checked. ``virtual_size`` in bytes; ``data_at``: where its new blocks begin."""

    path: Path
    virtual_size: int
    runs: Runs
    data_at: int

    def pieces(self) -> Iterator[bytes]:
        """The new blocks, PIECE bytes at a time. Raises ImageCorrupt."""
        with self.path.open("rb") as file:
            file.seek(self.data_at)
            yield from _ordered(lambda piece: _unpacked(self.path, *piece), self._packed(file))

    def _packed(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        left = self.runs.new * BLOCK
        while left:
            some = min(left, PIECE)
            length = struct.unpack("<I", _exactly(self.path, file, 4))[0]
            if length > some + some // 8 + 1024:
                raise ImageCorrupt(f"{self.path}: a piece of {length} bytes at {file.tell()} is too long", _AGAIN)
            yield _exactly(self.path, file, length), some
            left -= some
        if file.read(1):
            raise ImageCorrupt(f"{self.path}: there are bytes behind its end", _AGAIN)


def blocks_of(size: int) -> int:
    return -(-size // BLOCK)


def write(path: Path, below: Sequence[str], virtual_size: int, runs: Runs, new: Iterable[bytes],
          advance: Callable[[int], None] = lambda _: None) -> None:
    """Write a layer on the files with the digests ``below`` (disk first). ``new``: the new blocks in the order of the
    runs, in pieces of PIECE bytes and a last shorter one. ``advance`` hears of each piece's bytes. Raises OSError."""
    gaps, end = array("I"), 0
    for target, count in zip(runs.targets, runs.counts):
        gaps.append(target - end)
        end = target + count
    columns = lzma.compress(b"".join(_little(column).tobytes() for column in (gaps, runs.counts, runs.sources)))
    header = {"below": list(below), "virtual_size": virtual_size, "block": BLOCK, "runs": len(runs),
              "packed": len(columns), "new": runs.new, "copied": runs.copied}
    with path.open("wb") as file:
        file.write(_MAGIC + json.dumps(header).encode() + b"\n" + columns)
        for length, packed in _ordered(_pack, new):
            file.write(struct.pack("<I", len(packed)) + packed)
            advance(length)


def read(path: Path, below: Sequence[str], below_size: int, virtual_size: int) -> Delta:
    """Read and check all but the new blocks. ``below``: digests of the chain that it shall change, and ``below_size``
    and ``virtual_size`` the bytes of the disk without and with it.

    Raises ImageRefused where it belongs on another chain, is of another size or would copy what is below over and over
    (a few bytes that fill a disk), ImageCorrupt where it is damaged.
    """
    with path.open("rb") as file:
        header = _header(path, file)
        if header["below"] != list(below):
            raise ImageRefused(f"{path}: this layer belongs on {_shown(header['below'])}, but the manifest puts it on "
                               f"{_shown(below)}", "make it again from this base: vmjob image layer")
        if header["virtual_size"] != virtual_size:
            raise ImageRefused(f"{path}: the manifest says a disk of {virtual_size} bytes, the layer "
                               f"{header['virtual_size']}", _AGAIN)
        columns = array("I")
        columns.frombytes(_unpacked(path, _exactly(path, file, header["packed"]), 12 * header["runs"]))
        runs = _runs(path, _little(columns), header["runs"], blocks_of(virtual_size), blocks_of(below_size))
        if (runs.new, runs.copied) != (header["new"], header["copied"]):
            raise ImageCorrupt(f"{path}: {runs.new} new blocks and {runs.copied} copied ones, but its header says "
                               f"{header['new']} and {header['copied']}", _AGAIN)
        if runs.copied > MAX_COPIES * blocks_of(below_size) + _SOME_COPIES:
            raise ImageRefused(f"{path}: it copies {runs.copied * BLOCK} bytes out of a disk of {below_size}",
                               "make an image of its own of such a disk, not a layer")
        return Delta(path, virtual_size, runs, file.tell())


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    magic, line = file.read(len(_MAGIC)), file.readline(_HEADER)
    if magic != _MAGIC:
        raise ImageRefused(f"{path} is no layer that this vmjob knows", "make it with vmjob image layer")
    try:
        header = json.loads(line)
        numbers = {key: header[key] for key in ("virtual_size", "block", "runs", "packed", "new", "copied")}
        fits = all(type(number) is int and number >= 0 for number in numbers.values()) and \
            type(header["below"]) is list and all(type(digest) is str for digest in header["below"])
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits or numbers["block"] != BLOCK or not 0 < numbers["virtual_size"] <= MAX_SIZE \
            or numbers["runs"] > MAX_RUNS or numbers["packed"] > 16 * numbers["runs"] + 1024:
        raise ImageCorrupt(f"{path}: its header is damaged", _AGAIN)
    return {**numbers, "below": header["below"]}


def _runs(path: Path, columns: array[int], length: int, blocks: int, below: int) -> Runs:
    runs, end = Runs(), 0
    for n in range(length):
        gap, count, source = columns[n], columns[length + n], columns[2 * length + n]
        target, end = end + gap, end + gap + count
        if not count or end > blocks or (source < ZEROS and source + count > below):
            raise ImageCorrupt(f"{path}: run {n}: {count} blocks from {source} to {target} reach out of the disk",
                               _AGAIN)
        runs.append(target, count, source)
    return runs


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


def _shown(digests: Sequence[str]) -> str:
    return " + ".join(f"{digest[:12]}…" for digest in digests)


def _exactly(path: Path, file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ImageCorrupt(f"{path}: cut short at {os.fstat(file.fileno()).st_size} bytes", _AGAIN)
    return data


def _unpacked(path: Path, packed: bytes, length: int) -> bytes:
    """Exactly ``length`` bytes out of ``packed``, whatever it would become."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
    try:
        data = decoder.decompress(packed, length + 1)
    except lzma.LZMAError as wrong:
        raise ImageCorrupt(f"{path}: {wrong}", _AGAIN) from wrong
    if len(data) != length or not decoder.eof or decoder.unused_data:
        raise ImageCorrupt(f"{path}: what is packed in it has another length than {length}", _AGAIN)
    return data


def _pack(piece: bytes) -> tuple[int, bytes]:
    return len(piece), lzma.compress(piece, check=lzma.CHECK_CRC32, filters=_FILTERS)


def _ordered(call: Callable[[From], To], items: Iterable[From]) -> Iterator[To]:
    """``map`` in a thread for each CPU that we may use, a few items ahead; lzma works without Python's lock."""
    threads = min(4, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[To]] = deque()
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
