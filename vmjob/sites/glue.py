"""Entries of a BDII as text that can be used: what is binary, endless or steers a terminal is left out. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from vmjob.core.units import format_size

VALUE = 10000  # bytes of one value
NAME = 255
_SHOWN = 80


@dataclass(frozen=True)
class Entry:
    """``values`` by the attribute's name in lower case: LDAP does not tell upper from lower case there."""

    dn: str
    values: Mapping[str, tuple[str, ...]]

    def all(self, name: str) -> tuple[str, ...]:
        return self.values.get(name.lower(), ())

    def one(self, name: str, most: int = 1000) -> str:
        """The first value, at most so many characters of it; empty where there is none."""
        return next(iter(self.all(name)), "")[:most]

    def number(self, name: str) -> int:
        return number(self.one(name))

    def has(self, kind: str) -> bool:
        """Is it of this object class?"""
        return kind.lower() in self.kinds

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(one.lower() for one in self.all("objectClass"))

    def words(self, name: str) -> dict[str, str]:
        """Of values that are ``Key=value``; the first of each key counts."""
        found: dict[str, str] = {}
        for one in self.all(name):
            key, equals, value = one.partition("=")
            if equals:
                found.setdefault(key, value)
        return found


def entry(dn: bytes, raw: Mapping[str, Iterable[bytes]], notes: list[str]) -> Entry:
    """From what a server sent; ``notes`` are told what was left out."""
    name = _text(dn[:VALUE]) or "\ufffd"
    values: dict[str, tuple[str, ...]] = {}
    for key, many in raw.items():
        kept = []
        for one in many:
            text = _text(one) if len(one) <= VALUE else None
            if text is None:
                what = f"a value of {format_size(len(one))}" if len(one) > VALUE else "a binary value"
                notes.append(f"left out: {what} in {shown(key)} of {shown(name)}")
            elif text:
                kept.append(text)
        values[key.lower()] = tuple(kept)
    return Entry(name, values)


def _text(value: bytes) -> Optional[str]:
    """None where it is not text. ``dn%3A`` stands for ``dn:``, which no BDII takes: the publisher writes it."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text.replace("dn%3A", "dn:") if re.search(r"[\x00-\x1f\x7f]", text) is None else None


def shown(text: str) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def number(text: str) -> int:
    """0 for what is none, or so large that it means "nobody knows" (GFD.147, appendix A)."""
    return int(text) if re.fullmatch(r"[0-9]{1,17}", text) else 0


def listed(text: str, most: int = 1000) -> tuple[str, ...]:
    """Words with commas."""
    return tuple(one[:NAME] for one in dict.fromkeys(re.split(r"[,\s]+", text)) if one)[:most]


def vos(rules: Iterable[str]) -> tuple[str, ...]:
    """Of access rules: ``VO:x``, ``VOMS:/x/Role=y``, ``ALL``; others (DNs) say nothing of a VO."""
    found = []
    for rule in rules:
        kind, _, who = rule.partition(":")
        if rule.upper() == "ALL":
            found.append("*")
        elif kind.upper() == "VO" and who:
            found.append(who)
        elif kind.upper() == "VOMS" and who.startswith("/"):
            found.append(who.split("/")[1])
    return tuple(one[:NAME] for one in dict.fromkeys(found) if one)[:1000]


def rdns(dn: str) -> Sequence[tuple[str, str]]:
    """The parts of a DN, from the entry up: keys in lower case, values as they stand there."""
    parts = re.split(r"(?<!\\),", dn)
    return [(key.strip().lower(), re.sub(r"\\(.)", r"\1", value.strip())) for key, _, value in
            (part.partition("=") for part in parts)]


def tagged(tag: str) -> str:
    """The name in ``vm_NAME``; empty for another word, and for a digest's (``vm_sha256_HEX``)."""
    return tag[3:NAME] if tag.startswith("vm_") and not digest_of(tag) else ""


def digest_of(tag: str) -> str:
    """``sha256:HEX`` of ``vm_sha256_HEX``, empty for another word."""
    found = re.fullmatch(r"vm_sha256_([0-9a-fA-F]{64})", tag)
    return f"sha256:{found[1].lower()}" if found else ""


def digest(text: str) -> str:
    """A digest, or nothing."""
    return text if re.fullmatch(r"sha256:[0-9a-f]{64}", text) else ""
