"""Writing qcow2 disks: packed by qemu-img, or by ourselves where QEMU would not lay out what we need.

The format: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from vmjob.core import blockdev

CLUSTER = 4096
_AREA = CLUSTER // 8  # clusters that one table of the second level is about
_REFCOUNTS = CLUSTER // 2  # clusters that one block of reference counts is about
_COPIED, _ZERO = 1 << 63, 1
_MOST = 0xFFFF  # times that a cluster is used


def pack(raw: Path, target: Path) -> None:
    """A raw disk as the compressed qcow2 ``target``: small to send, and bootable as it is, so that no node unpacks it.
    The same bytes from the same disk. Raises CommandMissing or CommandFailed."""
    pack_chain([(str(raw.resolve()), "raw")], target)


def pack_chain(disks: Sequence[tuple[str, str]], target: Path) -> None:
    """The same of all that is in a chain of disks (absolute path and format, the lowest first)."""
    # never with -W, which writes clusters as they come; file: keeps a colon in a path from being read as a protocol
    place = target.resolve()
    blockdev.qemu_img("convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd,cluster_size=65536",
                      blockdev.file_name(disks), f"file:{place}", disks=disks, folder=place.parent)


class Sparse:
    """The layout of a qcow2 of ``size`` bytes that holds only the ``extents`` and names no backing file. An extent is a
    target, a count (both in clusters of CLUSTER bytes), and whether its data is stored; if not, it reads as zeros.
    In order, without overlap.

    Small clusters, as a layer's blocks are: in larger ones each would drag its neighbours along, or leave holes. The
    data of all extents lie one behind the other from ``data_at`` on; ``total`` is the length of the whole file. Areas
    that are all zeros share a table, so that they cost next to nothing, however many there are.
    """

    def __init__(self, size: int, extents: Iterable[tuple[int, int, bool]]) -> None:
        self.size = -(-size // 512) * 512
        self.extents, self._zeros = _parted(_joined(extents))
        data = sum(count for _, count, stored in self.extents if stored)
        zeros = -(-sum(map(len, self._zeros)) // _MOST)
        areas, last = 0, -1
        for target, count, _ in self.extents:
            first, end = max(last + 1, target // _AREA), (target + count - 1) // _AREA
            areas += max(0, end - first + 1)
            last = max(last, end)
        self._l1_length = max(1, -(-self.size // (CLUSTER * _AREA)))
        l1 = -(-self._l1_length * 8 // CLUSTER)
        total, before = 1 + l1 + zeros + areas + data, -1
        while total != before:  # the counts count their own blocks too
            before = total
            self._blocks = -(-total // _REFCOUNTS)
            self._table = -(-self._blocks * 8 // CLUSTER)
            total = 1 + l1 + zeros + areas + data + self._table + self._blocks
        self._l1_at = 1
        self._table_at = self._l1_at + l1
        self._blocks_at = self._table_at + self._table
        self._zeros_at = self._blocks_at + self._blocks
        self._l2_at = self._zeros_at + zeros
        self.data_at = (self._l2_at + areas) * CLUSTER
        self.total = total * CLUSTER

    def write_tables(self, out: int) -> None:
        """Write all but the data into the open file, and give it its length. Raises OSError."""
        os.ftruncate(out, self.total)
        head = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 12, self.size, 0, self._l1_length,
                           self._l1_at * CLUSTER, self._table_at * CLUSTER, self._table, 0, 0, 0, 0, 0, 4, 104)
        os.pwrite(out, head, 0)
        l1, at = array("Q", bytes(8 * self._l1_length)), self._l2_at
        for area, table in self._tables():
            os.pwrite(out, _big(table), at * CLUSTER)
            l1[area] = at * CLUSTER | _COPIED
            at += 1
        shared = self._write_zeros(out, l1)
        os.pwrite(out, _big(l1), self._l1_at * CLUSTER)
        blocks = array("Q", ((self._blocks_at + n) * CLUSTER for n in range(self._blocks)))
        os.pwrite(out, _big(blocks), self._table_at * CLUSTER)
        for n in range(self._blocks):  # each cluster is used once, but the tables that areas share
            used = min(_REFCOUNTS, self.total // CLUSTER - n * _REFCOUNTS)
            os.pwrite(out, b"\0\1" * used, (self._blocks_at + n) * CLUSTER)
        for n, times in enumerate(shared):
            os.pwrite(out, struct.pack(">H", times), self._blocks_at * CLUSTER + 2 * (self._zeros_at + n))

    def _write_zeros(self, out: int, l1: array[int]) -> list[int]:
        """The tables of areas that are all zeros, and how often each is used, which 16 bits are to hold."""
        shared: list[int] = []
        areas = chain.from_iterable(self._zeros)
        while part := list(islice(areas, _MOST)):
            at = (self._zeros_at + len(shared)) * CLUSTER
            os.pwrite(out, _big(array("Q", [_ZERO]) * _AREA), at)
            for area in part:
                l1[area] = at | (_COPIED if len(part) == 1 else 0)
            shared.append(len(part))
        return shared

    def _tables(self) -> Iterator[tuple[int, array[int]]]:
        area, table, at = -1, array("Q"), self.data_at
        for target, count, stored in self.extents:
            end = target + count
            while target < end:
                if target // _AREA != area:
                    if area >= 0:
                        yield area, table
                    area, table = target // _AREA, array("Q", bytes(CLUSTER))
                some = min(end, (area + 1) * _AREA) - target
                place = target - area * _AREA
                if stored:
                    table[place:place + some] = array("Q", range(at | _COPIED, at + some * CLUSTER | _COPIED, CLUSTER))
                    at += some * CLUSTER
                else:
                    table[place:place + some] = array("Q", [_ZERO]) * some
                target += some
        if area >= 0:
            yield area, table


def _joined(extents: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """The same extents; those that touch and are of one kind are one."""
    target, count, stored = 0, 0, False
    for start, some, kind in extents:
        if count and start == target + count and kind == stored:
            count += some
            continue
        if count:
            yield target, count, stored
        target, count, stored = start, some, kind
    if count:
        yield target, count, stored


def _parted(extents: Iterable[tuple[int, int, bool]]) -> tuple[list[tuple[int, int, bool]], list[range]]:
    """What needs tables of its own, and the areas that are zeros from end to end."""
    own, zeros = [], []
    for target, count, stored in extents:
        first, end = -(-target // _AREA), (target + count) // _AREA
        if stored or first >= end:
            own.append((target, count, stored))
            continue
        zeros.append(range(first, end))
        for start, stop in ((target, first * _AREA), (end * _AREA, target + count)):
            if start < stop:
                own.append((start, stop - start, False))
    return own, zeros


def _big(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()
