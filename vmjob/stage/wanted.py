"""What may come back from a guest: what an output pattern of its job matches.

The patterns are a shell's, expanded by the agent in the guest; the guest may be hostile and bring anything, so they are
matched here once more. What never comes back whatever the pattern: vmjob.ownnames.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Optional

_CLASSES = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
            "xdigit": "0-9a-fA-F", "space": r"\s", "blank": r" \t", "punct": r"!-/:-@\[-`{-~",
            "print": r" -~", "graph": r"!-~", "cntrl": r"\x00-\x1f\x7f"}


class Wanted:
    """The output patterns of a job. ``missing`` names those that nothing has matched yet."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [(pattern, [_Part(part) for part in pattern.split("/") if part not in ("", ".")])
                          for pattern in patterns]
        self._matched: set[str] = set()

    def take(self, parts: Sequence[str]) -> bool:
        """May the member with these parts of its name come back? What it matches is noted."""
        found = False
        for pattern, own in self._patterns:
            if len(parts) >= len(own) and all(part.fits(name) for part, name in zip(own, parts)):
                self._matched.add(pattern)
                found = True
        return found

    @property
    def missing(self) -> list[str]:
        return [pattern for pattern, _ in self._patterns if pattern not in self._matched]


class _Part:
    """One part of a pattern between slashes. Shells differ in what ``[^a]`` and a backslash mean, and in whether ``?``
    is a byte: each reading counts. A leading dot is matched by a dot alone."""

    def __init__(self, text: str) -> None:
        self._text, self._hidden = text, text.startswith((".", "\\."))
        self._characters = list(filter(None, (_compiled(text, no) for no in ("!", "!^"))))
        self._bytes = list(filter(None, (_compiled(_as_bytes(text), no) for no in ("!", "!^"))))

    def fits(self, name: str) -> bool:
        if name == self._text:
            return True
        if name.startswith(".") and not self._hidden:
            return False
        return any(one.fullmatch(name) for one in self._characters) \
            or any(one.fullmatch(_as_bytes(name)) for one in self._bytes)


def _as_bytes(text: str) -> str:
    return os.fsencode(text).decode("latin-1")


def _compiled(text: str, negation: str) -> Optional[re.Pattern[str]]:
    """A shell's pattern as a regular expression that takes a time linear in the name, for the name is a stranger's."""
    pieces: list[list[str]] = [[]]  # what stands between the stars
    at = 0
    while at < len(text):
        if text[at] == "*":
            pieces.append([])
        elif text[at] == "?":
            pieces[-1].append(".")
        elif text[at] == "[" and (found := _set(text, at, negation)):
            pieces[-1].append(found[0])
            at = found[1]
            continue
        else:
            at += text[at] == "\\" and at + 1 < len(text)
            pieces[-1].append(re.escape(text[at]))
        at += 1
    first, *more = ["".join(piece) for piece in pieces]
    # the first place where a piece fits is as good as any, so there is no way back into it (?=(…))\1
    middle = "".join(rf"(?=(.*?{piece}))\{number}" for number, piece in enumerate(more[:-1], 1))
    try:
        return re.compile(f"{first}{middle}" + (f".*{more[-1]}" if more else ""), re.S)
    except re.error:
        return None


def _set(text: str, start: int, negation: str) -> Optional[tuple[str, int]]:
    """``[…]`` at ``start``, and where it ends; None where it is no set but a bracket."""
    at, found = start + 1, ""
    wrong = text[at:at + 1] in tuple(negation)
    at += wrong
    first, open_ = True, False
    while at < len(text) and (first or text[at] != "]"):
        named = re.compile(r"\[:([a-z]+):\]").match(text, at)
        if named and named[1] in _CLASSES:
            found, at = found + _CLASSES[named[1]], named.end()
        else:
            at += text[at] == "\\" and at + 1 < len(text)
            # a hyphen between two is "to"; one that ends such a range is itself
            ranges = text[at] == "-" and found and text[at + 1:at + 2] not in ("]", "") and not open_
            found, open_, at = found + ("-" if ranges else re.escape(text[at])), bool(ranges), at + 1
        first = False
    return (f"[{'^' if wrong else ''}{found}]", at + 1) if at < len(text) else None
