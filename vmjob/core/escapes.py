"""Text of strangers made fit for a terminal: the one place that decides which characters are shown as they are."""

from __future__ import annotations

from typing import Union


def shown(text: Union[str, bytes], keep: str = "") -> str:
    r"""``text`` with every character that a terminal may act on, or that hides or turns others, as its escape: control
    characters (``\x1b``), line breaks of all kinds (``\n``, ``\u2028``), what has no shape or changes the direction
    (``\u202e``), bytes that are no UTF-8 (``\xff``). ``keep``: of those, what passes. What was shown once stays so.

    For printing; documents (JSON, ClassAds, records) have escapes of their own."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xdc80 <= code <= 0xdcff:  # a byte, as the system's functions carry it
        return f"\\x{code - 0xdc00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def brief(text: str, most: int = 200) -> str:
    """The beginning of a name that may be of any length, for a message. It is not escaped: who prints does that."""
    return text if len(text) <= most else f"{text[:most]}…"
