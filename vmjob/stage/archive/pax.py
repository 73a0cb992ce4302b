"""The records of a pax header, from an archive of a hostile guest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from vmjob.core.errors import OutputRefused

MAX_OTHERS = 1000  # records in one header that nobody here reads; tars write a few
HINT = "the guest wrote something else than a plain tar archive on its output disk"
_NUMBER = re.compile(rb"[0-9]{1,19}")
GLOBAL = ("path", "linkpath", "size", "mtime")


@dataclass(frozen=True)
class Pax:
    """Records of a pax header; ``map`` gathers GNU's repeated offset and numbytes pairs (sparse 0.0)."""

    values: dict[str, str] = field(default_factory=dict)
    map: tuple[int, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Pax:
        values: dict[str, str] = {}
        pairs: list[int] = []
        start = others = 0
        while start < len(data) and data[start]:
            space = data.find(b" ", start, start + 12)
            digits = data[start:space] if space > 0 else b""
            length = int(digits) if _NUMBER.fullmatch(digits) else 0
            record = data[space + 1:start + length]
            key, equals, value = record.partition(b"=")
            if length < 5 or not equals or record[-1:] != b"\n" or start + length > len(data):
                raise OutputRefused("the output archive has a pax header that cannot be read", HINT)
            name = os.fsdecode(key)
            if name in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
                pairs.append(decimal(value[:-1], name))
            elif name in GLOBAL or name.startswith("GNU.sparse."):
                values[name] = os.fsdecode(value[:-1])
            else:
                others += 1
            if others > MAX_OTHERS:
                raise OutputRefused(f"the output archive has a pax header of more than {MAX_OTHERS} records", HINT)
            start += length
        return cls(values, tuple(pairs))


def decimal(text: bytes, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise OutputRefused(f"the output archive holds {text[:20]!r} as {what}", HINT)
    return int(text)
