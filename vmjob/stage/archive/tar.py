"""Reads tar archives that come from a hostile guest.

Not the standard library's tarfile: it reads extension headers of any size into memory, keeps every
member, loops on negative sizes in the Python versions of many nodes, and has no sparse members to move
inside the kernel. Here a member is a name and the pieces of the archive that hold its bytes.

Read: v7, ustar, GNU (long names, old sparse) and pax (path, linkpath, size, mtime; sparse 0.0, 0.1, 1.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Optional

from vmjob.core.errors import OutputRefused
from vmjob.core.escapes import brief
from vmjob.stage.archive.pax import GLOBAL, HINT, Pax, decimal

BLOCK = 512
MAX_HEADER = 2**20  # bytes of one long name or one set of pax records
MAX_HEADERS = 64 * 2**20  # of all of them, and of all sparse maps, together
_EACH = 64  # what a header counts for beside its bytes: an archive of empty headers has no members to be counted
MAX_NAME = 4096  # bytes; no system call takes more
MAX_MAP = 8 * 2**20
MAX_PIECES = 200_000
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hardlink", b"2": "symlink", b"5": "folder", b"S": "file",
          b"3": "device", b"4": "device", b"6": "fifo"}


@dataclass(frozen=True)
class Member:
    """``pieces``: (offset in the file, offset in the archive, length) of the parts that hold data."""

    name: str
    kind: str
    mode: int
    mtime: float
    size: int
    link: str
    pieces: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class _Header:
    """One header block, and what the extension headers before it changed."""

    block: bytes
    name: str
    link: str
    size: int
    type: bytes
    mtime: float
    at: int  # where its data begin


def read_members(archive: int, end: int, check: Callable[[], None] = lambda: None) -> Iterator[Member]:
    """The members of the archive at the start of the open file ``archive``, which has ``end`` bytes.

    Memory and work stay bounded whatever the archive says; ``check`` is called at every header, and what it raises ends
    it. Raises OutputRefused for what is no whole archive.
    """
    position, before = 0, _Before()
    while True:
        check()
        block = _take(archive, position, BLOCK, end, "the archive ends in the middle")
        if not block.strip(b"\0"):
            return
        header = _parse(block, position + BLOCK)
        if header.type in b"xgLK":
            if header.size > MAX_HEADER:
                raise OutputRefused(f"a header of the output archive is {header.size} bytes long", HINT)
            before.count(_EACH + header.size)
            before.take(header.type, _take(archive, header.at, header.size, end, "a header is cut off"))
            position = _next(header.at, header.size)
            continue
        header = _extended(header, before.name, before.link, {**before.everywhere, **before.pax.values})
        if header.at + header.size > end:
            raise OutputRefused(f"{brief(header.name)}: the output archive ends before this member does", HINT)
        position, member, used = _member(archive, header, before.pax, end)
        before.count(used)
        if member is not None:
            yield member
        before.next()


def _take(archive: int, start: int, length: int, end: int, trouble: str) -> bytes:
    data = os.pread(archive, length, start) if start + length <= end else b""
    if len(data) != length:
        raise OutputRefused(f"the output archive is broken at byte {start}: {trouble}", HINT)
    return data


def _next(start: int, length: int) -> int:
    return start + -(-length // BLOCK) * BLOCK


def _text(data: bytes) -> str:
    return os.fsdecode(data.split(b"\0", 1)[0])


def _number(digits: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256 for large numbers; never negative."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    digits = digits.split(b"\0", 1)[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise OutputRefused(f"the output archive holds {digits[:20]!r} as the {what} of a member", HINT)
    return int(digits or b"0", 8)


def _parse(block: bytes, at: int) -> _Header:
    total, told = sum(block) - sum(block[148:156]) + 8 * 32, _number(block[148:156], "checksum")
    # some old tars add the bytes up as signed numbers
    if told != total and told != total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise OutputRefused(f"there is no tar archive at byte {at - BLOCK} of the output disk (checksum)", HINT)
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345] and block[156:157] not in b"xgLK":
        name = f"{_text(block[345:500])}/{name}"
    return _Header(block, name, _text(block[157:257]), _number(block[124:136], "size"), block[156:157],
                   _time(block[136:148]), at)


def _time(digits: bytes) -> float:
    try:
        return float(min(_number(digits, "time"), 2**33))
    except OutputRefused:  # before 1970, or nonsense: not worth an archive
        return 0.0


@dataclass
class _Before:
    """What came before a member: the extension headers that are its own, and those for all."""

    pax: Pax = field(default_factory=Pax)
    name: str = ""
    link: str = ""
    everywhere: dict[str, str] = field(default_factory=dict)
    size: int = 0  # of all headers so far

    def count(self, more: int) -> None:
        self.size += more
        if self.size > MAX_HEADERS:
            raise OutputRefused(f"the headers of the output archive have more than {MAX_HEADERS >> 20} MiB", HINT)

    def take(self, kind: bytes, data: bytes) -> None:
        if kind == b"x":
            self.pax = Pax.parse(data)
        elif kind == b"g":
            self.everywhere.update(item for item in Pax.parse(data).values.items() if item[0] in GLOBAL)
        elif kind == b"L":
            self.name = _text(data)
        else:
            self.link = _text(data)

    def next(self) -> None:
        self.pax, self.name, self.link = Pax(), "", ""


def _extended(header: _Header, long_name: str, long_link: str, pax: dict[str, str]) -> _Header:
    name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or header.name
    link = pax.get("linkpath") or long_link or header.link
    size = decimal(os.fsencode(pax["size"]), "size") if "size" in pax else header.size
    stamp = re.match(r"[0-9]{1,10}(\.[0-9]{1,9})?\Z", pax.get("mtime", ""), re.A)
    mtime = min(float(stamp.group()), 2.0**33) if stamp else header.mtime
    if "\0" in name or "\0" in link:
        raise OutputRefused("a name in the output archive holds a NUL byte", HINT)
    if len(os.fsencode(name)) > MAX_NAME or len(os.fsencode(link)) > MAX_NAME:
        raise OutputRefused(f"{brief(name)}: a name in the output archive has more than {MAX_NAME} bytes", HINT)
    return replace(header, name=name, link=link, size=size, mtime=mtime)


def _member(archive: int, header: _Header, extra: Pax, end: int) -> tuple[int, Optional[Member], int]:
    """Where the next header is, the member (None for a volume label), and what its sparse map counts for."""
    kind = _KINDS.get(header.type, "")
    if header.type == b"V":
        return _next(header.at, header.size), None, _EACH
    if not kind:
        raise OutputRefused(f"{header.name}: the output archive has a member of type {header.type!r}",
                            "only files, folders and links can come back")
    if kind == "file" and header.name.endswith("/") and header.type != b"S":
        kind = "folder"
    stored = header.size if kind == "file" else 0  # others may name a size, but have no data
    size, data, spots = stored, header.at, None
    behind = _next(header.at, stored)
    if kind == "file" and header.type == b"S":
        size, data, spots = _old_gnu(archive, header, end)
        behind = _next(data, stored)
    elif kind == "file":
        size, data, spots = _pax_sparse(archive, header, extra, end)
    pieces = ((0, data, size),) if spots is None else _pieces(header.name, spots, data, size, behind)
    if behind > end:
        raise OutputRefused(f"{header.name}: the output archive ends before this member does", HINT)
    member = Member(header.name, kind, _number(header.block[100:108], "mode") & 0o777, header.mtime, size, header.link,
                    tuple(piece for piece in pieces if piece[2]))
    return behind, member, data - header.at


def _pieces(name: str, spots: list[int], data: int, size: int, behind: int) -> tuple[tuple[int, int, int], ...]:
    """(offset, length) pairs of a sparse map, checked, as pieces."""
    pieces, last = [], 0
    for offset, length in zip(spots[::2], spots[1::2]):
        if offset < last or offset + length > size or data + length > behind:
            raise OutputRefused(f"{name}: its sparse map does not fit its size", HINT)
        pieces.append((offset, data, length))
        data, last = data + length, offset + length
    return tuple(pieces)


def _old_gnu(archive: int, header: _Header, end: int) -> tuple[int, int, list[int]]:
    size, at, more = _number(header.block[483:495], "size"), header.at, header.block[482]
    spots = _spots(header.block[386:482])
    while more:
        block = _take(archive, at, BLOCK, end, "a sparse map is cut off")
        spots += _spots(block[:504])
        at, more = at + BLOCK, block[504]
        _few(header.name, len(spots))
    return size, at, spots


def _spots(block: bytes) -> list[int]:
    found: list[int] = []
    for start in range(0, len(block), 24):
        if not block[start]:
            break
        found += [_number(block[start:start + 12], "offset"), _number(block[start + 12:start + 24], "length")]
    return found


def _few(name: str, count: int) -> None:
    if count > 2 * MAX_PIECES:
        raise OutputRefused(f"{name}: it is sparse in more than {MAX_PIECES} pieces",
                            "write the file without holes, or pack it in the job")


def _pax_sparse(archive: int, header: _Header, extra: Pax, end: int) -> tuple[int, int, Optional[list[int]]]:
    """Size, start of the data and sparse map of a file, which in most archives is just a file."""
    pax = extra.values
    numbers = [value for key, value in pax.items() if key in ("GNU.sparse.size", "GNU.sparse.realsize")]
    size = decimal(os.fsencode(numbers[-1]), "size") if numbers else header.size
    if pax.get("GNU.sparse.major") == "1":
        if pax.get("GNU.sparse.minor", "0") != "0" or not numbers:
            raise OutputRefused(f"{header.name}: a kind of sparse file that is not known here", HINT)
        spots, used = _map_1_0(archive, header, end)
        return size, header.at + used, spots
    if "GNU.sparse.map" in pax:
        text = os.fsencode(pax["GNU.sparse.map"])
        _few(header.name, text.count(b",") + 1)
        return size, header.at, [decimal(one, "sparse map") for one in text.split(b",") if text]
    if extra.map:
        _few(header.name, len(extra.map))
        return size, header.at, list(extra.map)
    return (size, header.at, []) if numbers and header.size == 0 else (header.size, header.at, None)


def _map_1_0(archive: int, header: _Header, end: int) -> tuple[list[int], int]:
    """The map before the data: a count, then offset and length of each piece, a line each, padded to a block."""
    text, need, used = b"", 1, 0
    lines: list[bytes] = []
    while len(lines) < need:
        if used >= min(MAX_MAP, header.size) or len(text) > 20:
            raise OutputRefused(f"{header.name}: its sparse map has no end", HINT)
        text += _take(archive, header.at + used, BLOCK, end, "a sparse map is cut off")
        used += BLOCK
        *whole, text = text.split(b"\n")
        lines += whole
        if lines:
            count = decimal(lines[0], "sparse map")
            _few(header.name, 2 * count)
            need = 1 + 2 * count
    return [decimal(line, "sparse map") for line in lines[1:need]], used
