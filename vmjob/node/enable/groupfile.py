"""Lines of /etc/group (group(5)) and /etc/gshadow (gshadow(5)): members in, members out, all else as it is. Pure.

Text is whatever the bytes are, read with ``surrogateescape``; lines that are no entries stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from vmjob.core.machinetext import is_number

_OPEN = ("", "!", "!!", "*", "x")  # passwords that are none


@dataclass(frozen=True)
class Entry:
    """One line. ``number``: of the group, as text; of gshadow: its administrators."""

    name: str
    password: str
    number: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join((self.name, self.password, self.number, ",".join(self.members)))


def _lines(text: str) -> list[str]:
    """With their ends; only a newline ends one, as for the C library."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def entry(text: str, name: str) -> Optional[Entry]:
    """The line of group ``name``, None where there is none. Raises ValueError where there are two, or it is broken."""
    lines = [line.rstrip("\n") for line in _lines(text) if line.split(":", 1)[0] == name]
    if len(lines) > 1:
        raise ValueError(f"the group {name} is there {len(lines)} times")
    if not lines:
        return None
    parts = lines[0].split(":")
    if len(parts) != 4:
        raise ValueError(f"the line of group {name} has {len(parts)} fields, not 4")
    return Entry(name, parts[1], parts[2], tuple(filter(None, map(str.strip, parts[3].split(",")))))


def replaced(text: str, name: str, new: Optional[Entry]) -> str:
    """The file with ``new`` as the line of group ``name``: changed in its place, else added at the end (before lines of
    NIS, ``+…``, which hide what comes later); None: without the line."""
    lines = _lines(text)
    at = next((index for index, line in enumerate(lines) if line.split(":", 1)[0] == name), None)
    if new is None:
        return "".join(line for index, line in enumerate(lines) if index != at)
    if at is not None:
        lines[at] = f"{new}\n" if lines[at].endswith("\n") else str(new)
        return "".join(lines)
    at = next((index for index, line in enumerate(lines) if line.startswith("+")), len(lines))
    if at and not lines[at - 1].endswith("\n"):
        lines[at - 1] += "\n"
    return "".join([*lines[:at], f"{new}\n", *lines[at:]])


def with_members(one: Entry, more: Sequence[str]) -> Entry:
    """``one`` with those who are not in it yet."""
    return replace(one, members=tuple(dict.fromkeys((*one.members, *more))))


def without(one: Entry, gone: Collection[str]) -> Entry:
    """``one`` without these."""
    return replace(one, members=tuple(who for who in one.members if who not in gone))


def numbers(text: str) -> set[int]:
    """The numbers of all groups in /etc/group."""
    parts = (line.split(":") for line in _lines(text))
    return {int(one[2]) for one in parts if len(one) >= 3 and is_number(one[2])}


def masked(text: str) -> str:
    """The text as it may be shown: without what could be a password."""
    shown = []
    for line in _lines(text):
        parts = line.split(":")
        if len(parts) >= 3 and parts[1] not in _OPEN:
            parts[1] = "(hidden)"
        shown.append(":".join(parts))
    return "".join(shown)
