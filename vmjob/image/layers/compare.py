"""What a disk holds that the chain of disks below does not: same block at the same place first, then anywhere below.

Both are read once side by side, and the chain below once more, in both cases only where there is data; memory is needed
for what differs alone, about 150 bytes for each block of 4 KiB (40 MB for each GB).
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Optional

from vmjob.core import blockdev
from vmjob.core.errors import ImageError
from vmjob.core.progress import Bar
from vmjob.image.layers.delta import BLOCK, MAX_RUNS, NEW, PIECE, ZEROS, Runs
from vmjob.image.layers.nbd import MAX_READ, Reader

Chain = Sequence[tuple[str, str]]
_ZERO = bytes(BLOCK)
_DIGEST = 16
_WINDOW = MAX_READ // BLOCK


def data_windows(chain: Chain) -> list[int]:
    """Numbers of the windows of MAX_READ bytes in which the chain has data, in order. Raises CommandFailed."""
    told = json.loads(blockdev.qemu_img("map", "--output=json", blockdev.file_name(chain), disks=chain).stdout)
    found: set[int] = set()
    for extent in told:
        if extent["data"] and not extent["zero"]:
            found.update(range(extent["start"] // MAX_READ, -(-(extent["start"] + extent["length"]) // MAX_READ)))
    return sorted(found)


def differences(below: Reader, below_data: Sequence[int], new: Reader, new_data: Sequence[int], bar: Bar) -> Runs:
    """The runs that make ``new`` of ``below``; ``_data``: from data_windows. ``bar`` hears of the bytes that are read:
    both, and ``below`` again. Raises ImageError where a layer makes no sense, and as Reader."""
    # keyed, so that nobody can prepare blocks that are taken for one another
    hasher = hashlib.blake2b(digest_size=_DIGEST, key=os.urandom(16))
    places, digests = _changed(below, below_data, new, new_data, hasher, bar)
    wanted: dict[bytes, Optional[int]] = {}
    for n in range(0, len(digests), _DIGEST):
        wanted[bytes(digests[n:n + _DIGEST])] = None
    wanted.pop(bytes(_DIGEST), None)
    _look_up(below, below_data if wanted else (), wanted, hasher, bar)
    runs = Runs()
    for n, place in enumerate(places):
        digest = bytes(digests[n * _DIGEST:(n + 1) * _DIGEST])
        source = wanted.get(digest)
        runs.add(place, ZEROS if digest == bytes(_DIGEST) else NEW if source is None else source)
    if len(runs) > MAX_RUNS:
        raise ImageError(f"they differ in {len(runs)} places, too many for a layer", "make an image of its own of it")
    return runs


def _changed(below: Reader, below_data: Sequence[int], new: Reader, new_data: Sequence[int], hasher: hashlib.blake2b,
             bar: Bar) -> tuple[array[int], bytearray]:
    """The blocks of ``new`` that are others than those below at the same place, and their digests; zeros for zeros."""
    places, digests = array("I"), bytearray()
    old, fresh = _pieces(below, below_data), _pieces(new, new_data)
    in_old, in_new = set(below_data), set(new_data)
    for window in sorted(in_old | in_new):
        a = next(old) if window in in_old else bytes(MAX_READ)
        b = next(fresh) if window in in_new else bytes(MAX_READ)
        bar.advance(len(a) * (window in in_old) + len(b) * (window in in_new))
        if a == b:
            continue
        for n in range(0, MAX_READ, BLOCK):
            block = b[n:n + BLOCK]
            if block != a[n:n + BLOCK] and window * MAX_READ + n < new.size:
                places.append(window * _WINDOW + n // BLOCK)
                digests += bytes(_DIGEST) if block == _ZERO else _digest(hasher, block)
    return places, digests


def _look_up(below: Reader, data: Sequence[int], wanted: dict[bytes, Optional[int]], hasher: hashlib.blake2b,
             bar: Bar) -> None:
    """Fill in where each of ``wanted`` is below, the first place of several."""
    end = -(-below.size // BLOCK)
    for window, piece in zip(data, _pieces(below, data)):
        bar.advance(len(piece))
        for n in range(0, MAX_READ, BLOCK):
            digest = _digest(hasher, piece[n:n + BLOCK])
            place = window * _WINDOW + n // BLOCK
            if wanted.get(digest, 0) is None and place < end:
                wanted[digest] = place


def _digest(hasher: hashlib.blake2b, block: bytes) -> bytes:
    mine = hasher.copy()
    mine.update(block)
    return mine.digest()


def _pieces(reader: Reader, windows: Sequence[int]) -> Iterator[bytes]:
    return reader.reads((window * MAX_READ, MAX_READ) for window in windows)


def new_blocks(runs: Runs, disk: Reader) -> Iterator[bytes]:
    """The new blocks of ``runs``, read from the disk that has them, as delta.write takes them."""
    def wanted() -> Iterator[tuple[int, int]]:
        for target, count, source in runs:
            if source == NEW:
                for start in range(0, count, _WINDOW):
                    yield (target + start) * BLOCK, min(_WINDOW, count - start) * BLOCK

    waiting = bytearray()
    for piece in disk.reads(wanted()):
        waiting += piece
        if len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    if waiting:
        yield bytes(waiting)
