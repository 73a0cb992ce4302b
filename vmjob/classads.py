"""ClassAds as text: literals that are read alike by old and new ClassAds, by HTCondor's configuration and by classad2,
whatever is in them. Names and titles come from others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

Value = Union[bool, int, float, str]


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

