"""Text that machines write and read: a line ends at a newline and nowhere else, a digit is 0 to 9.

``str.splitlines``, ``isdigit``, ``isspace`` and their like know all of Unicode (eleven line ends, hundreds of digits),
and ``Path.read_text`` makes a newline of a carriage return: by them a stranger's value reads as several lines, or a
word as a number. A test keeps them out of this package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

_DIGITS = 18  # as many as any number of bytes or seconds has; longer ones take quadratic time to read


def lines(text: str) -> list[str]:
    """The lines of a text; a carriage return is part of its line. What follows the last newline is a line, if it is
    not empty."""
    found = text.split("\n")
    return found if found[-1] else found[:-1]


def last_line(text: str, otherwise: str = "") -> str:
    """The last line with something in it."""
    return next((line.strip() for line in reversed(lines(text)) if line.strip()), otherwise)


def is_number(text: str) -> bool:
    """Is this a whole number of at most 18 digits, and nothing else?"""
    return 0 < len(text) <= _DIGITS and text.isascii() and text.isdigit()


def number(text: str) -> Optional[int]:
    """The whole number that ``text`` is, None where it is none."""
    return int(text) if is_number(text) else None


def decimal(text: str) -> float:
    """A number such as ``-1``, ``2.5`` or ``1e9``, with blanks around it. Raises ValueError."""
    if len(text) > 64 or not re.fullmatch(r"[ \t\r\n]*[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?[ \t\r\n]*", text):
        raise ValueError("it is no number")
    return float(text) if re.search(r"[.eE]", text) else int(text)


def read(path: Path) -> str:
    """The text of a file as it stands. Raises OSError."""
    return path.read_bytes().decode(errors="replace")
