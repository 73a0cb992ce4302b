"""ClassAds as text: literals that are read alike by old and new ClassAds, by HTCondor's configuration and by classad2,
whatever is in them. Names and titles come from others. And ads as HTCondor writes them, read strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Optional, Union

from vmjob.core.machinetext import lines

Value = Union[bool, int, float, str]
LARGEST = 2**20  # bytes of an ad that is read

# A quote in a string has a backslash before it. A backslash alone is itself, also before the quote that ends the line.
_STRING = r'"(?:[^"\\]|\\"|\\(?!"))*(?:"|\\"\Z)'
_ATTRIBUTE = re.compile(rf"""([A-Za-z_][A-Za-z0-9_.]*|'(?:[^'\\]|\\.)*')[ \t]*=[ \t]*
    ((?:[^"'\\]|{_STRING}|'(?:[^'\\]|\\.)*')*)\Z""", re.X)
_WHOLE_STRING = re.compile(rf"{_STRING}\Z")


def literal(value: Value) -> str:
    """A value as ClassAds write it. Text becomes one printable line: nothing in it can end the string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else "undefined"
    return '"' + line(value).replace('"', '\\"') + '"'


def line(text: str) -> str:
    """One printable line without backslashes: old ClassAds take one as itself, new ones as an escape."""
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text.replace("\\", "/")


def listing(values: Iterable[Value]) -> str:
    """A list, on one line."""
    return "{ " + ", ".join(map(literal, values)) + " }"


def record(attributes: Mapping[str, str]) -> str:
    """An ad within an ad, on one line. The values are expressions already."""
    return "[ " + " ".join(f"{name} = {expression};" for name, expression in attributes.items()) + " ]"


def words(values: Iterable[str]) -> str:
    """A string list: words with commas, for stringListMember. A comma cannot be escaped there, and spaces separate too:
    both become ``_``."""
    return literal(",".join(line(one).replace(",", "_").replace(" ", "_") for one in values))


def read(text: str) -> dict[str, str]:
    """An ad as HTCondor writes it (old ClassAds, one ``Name = value`` a line): names in lower case, strings without
    their quotes, expressions as they stand.

    HTCondor writes a newline within a string as it is. So the ad is refused as a whole where one of its lines is not
    whole by itself, or where a name stands twice: then a value of whoever submitted the job could be taken for an
    attribute of HTCondor's own. Raises ValueError."""
    found: dict[str, str] = {}
    if len(text) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    if text and not text.endswith("\n"):
        raise ValueError("its last line has no end")
    for number, one in enumerate(lines(text), 1):
        if not one.strip(" \t\r"):
            continue
        known = _ATTRIBUTE.match(one)
        if not known:
            raise ValueError(f"line {number} is no attribute that is whole by itself")
        name, value = known.group(1).lower(), known.group(2).rstrip(" \t\r")
        if name in found:
            raise ValueError(f"line {number}: {name[:60]} stands there twice")
        found[name] = string if (string := _string(value)) is not None else value
    return found


def _string(value: str) -> Optional[str]:
    return value[1:-1].replace('\\"', '"') if _WHOLE_STRING.match(value) else None
