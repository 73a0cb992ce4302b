"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import re
from typing import Union

from vmjob.core.errors import JobError

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TIMES = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*\Z")
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*([a-z]*)\s*")
_TIMES_ADDED = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]+)?\s*[a-z]+\s*)*(?:[0-9]{1,9}(?:\.[0-9]+)?)?")

KIB, MIB, GIB = 2**10, 2**20, 2**30


def parse_size(text: Union[str, int], where: str) -> int:
    """Bytes of ``"2 GiB"``, ``"500MB"`` or a plain number of bytes.

    ``where`` names file and key for the message. A bare number under a MiB is refused:
    it is nearly always a forgotten unit. Raises JobError.
    """
    found = _SIZE.match(str(text)) if len(str(text)) <= 100 else None
    if not found or found.group(2).upper() not in _SIZES:
        raise JobError(f"{where}: {text!r} is not a size",
                       "write a number and a unit, such as 512MiB, 2GiB or 500MB")
    size = int(float(found.group(1)) * _SIZES[found.group(2).upper()])
    if not found.group(2) and size < MIB:
        raise JobError(f"{where}: {text!r} has no unit", f"write {text}MiB or {text}GiB")
    if size <= 0:
        raise JobError(f"{where}: {text!r} is not a size", "it must be more than zero")
    return size


def parse_duration(text: Union[str, int, float], where: str) -> int:
    """Seconds of ``"90s"``, ``"1h30m"``, ``"2d"``, ``"01:30:00"`` or a plain number of seconds.

    Raises JobError naming ``where``.
    """
    raw = str(text).strip()
    bad = JobError(f"{where}: {text!r} is not a duration", "write it as 90s, 45m, 1h30m or 2d")
    if re.match(r"[0-9]{1,9}(:[0-9]{1,2}){1,2}\Z", raw):
        total = 0
        for part in raw.split(":"):
            total = total * 60 + int(part)
        if not total:
            raise bad
        return total if raw.count(":") == 2 else total * 60
    if not raw or len(raw) > 40 or not _TIMES_ADDED.fullmatch(raw):
        raise bad
    seconds = 0.0
    for number, unit in _TIME.findall(raw):
        if unit not in _TIMES:
            raise bad
        seconds += float(number) * _TIMES[unit]
    if seconds < 1:
        raise bad
    return int(seconds)


def format_size(size: float) -> str:
    """``1536 -> '1.5 KiB'``: three significant digits with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def size_text(size: int) -> str:
    """What ``parse_size`` reads back as just this size: ``3 * 2**29 -> '1536MiB'``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def format_duration(seconds: float) -> str:
    """``95 -> '1m35s'``; below a minute with two decimals: ``'1.75 s'``."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"


def counted(number: int, what: str) -> str:
    """As in "1 job", "2 jobs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
