"""Which of two versions is the newer one, by the rules of each package system. Pure.

``dpkg``: deb-version(7). ``rpm``: rpmvercmp with ~ and ^, epoch, release. ``pip``: PEP 440. ``apk``: Alpine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_letters, digits
from typing import Any

OPERATORS = ("<=", ">=", "!=", "<", "=", ">")


@dataclass(frozen=True)
class Constraint:
    """``operator`` is one of OPERATORS, or ``*``: any version."""

    operator: str
    version: str = ""


def parse_range(text: str) -> tuple[Constraint, ...]:
    """``>= 3.0, < 3.0.11-1`` as the constraints that must all hold. Raises ValueError that says what is wrong."""
    found = []
    for part in text.split(","):
        word = part.strip()
        operator = next((one for one in OPERATORS if word.startswith(one)), "")
        version = word[len(operator):].strip()
        if word == "*":
            found.append(Constraint("*"))
        elif not operator or not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+~^:!_-]{0,199}", version):
            raise ValueError(f"{word!r} is no range of versions")
        else:
            found.append(Constraint(operator, version))
    return tuple(found)


def fits(system: str, version: str, range_: tuple[Constraint, ...]) -> bool:
    """Does ``version`` of a package of ``system`` lie in the range?"""
    return all(_holds(one.operator, 0 if one.operator == "*" else compare(system, version, one.version))
               for one in range_)


def _holds(operator: str, order: int) -> bool:
    return {"<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">": order > 0, "!=": order != 0,
            "*": True}[operator]


def compare(system: str, a: str, b: str) -> int:
    """-1, 0 or 1: ``a`` is older than, as old as, or newer than ``b``. Never raises, whatever the texts are."""
    return _SYSTEMS[system](a, b)


def _order(a: Any, b: Any) -> int:
    return int(a > b) - int(a < b)


def _number(text: str) -> int:
    """Of a text of ASCII digits, which may be empty; a guest chooses how long it is."""
    return int(text[:1000] or "0")


# ---------------------------------------------------------------- dpkg


def _dpkg(a: str, b: str) -> int:
    (epoch_a, *parts_a), (epoch_b, *parts_b) = _dpkg_parts(a), _dpkg_parts(b)
    orders = [_order(_number(epoch_a), _number(epoch_b)), *map(_dpkg_part, parts_a, parts_b)]
    return next(filter(None, orders), 0)


def _dpkg_parts(version: str) -> tuple[str, str, str]:
    """Epoch, upstream version, revision."""
    epoch, colon, rest = version.partition(":")
    if not colon or not re.fullmatch(r"[0-9]*", epoch):
        epoch, rest = "", version
    upstream, hyphen, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if hyphen else (epoch, rest, "")


def _dpkg_part(a: str, b: str) -> int:
    """Text and numbers in turn; in text ``~`` is before the end, letters are before all else."""
    while a or b:
        (text_a, number_a, a), (text_b, number_b, b) = _dpkg_head(a), _dpkg_head(b)
        order = _order(text_a, text_b) or _order(number_a, number_b)
        if order:
            return order
    return 0


def _dpkg_head(text: str) -> tuple[list[int], int, str]:
    match = re.match(r"([^0-9]*)([0-9]*)", text)
    assert match
    letters = [-1 if c == "~" else ord(c) if c in ascii_letters else ord(c) + 256 for c in match.group(1)]
    return [*letters, 0], _number(match.group(2)), text[match.end():]


# ---------------------------------------------------------------- rpm


def _rpm(a: str, b: str) -> int:
    """A release counts only where both have one, so ``< 3.0.7`` means the version alone."""
    (epoch_a, version_a, release_a), (epoch_b, version_b, release_b) = _rpm_parts(a), _rpm_parts(b)
    return _order(epoch_a, epoch_b) or rpmvercmp(version_a, version_b) or (
        rpmvercmp(release_a, release_b) if release_a and release_b else 0)


def _rpm_parts(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon or not re.fullmatch(r"[0-9]*", epoch):
        epoch, rest = "", version
    name, hyphen, release = rest.rpartition("-")
    return (_number(epoch), name, release) if hyphen else (_number(epoch), rest, "")


def rpmvercmp(a: str, b: str) -> int:
    """One part, version or release, as rpm compares it."""
    while a or b:
        a, b = (re.sub(r"^[^0-9A-Za-z~^]+", "", text) for text in (a, b))
        for mark in "~^":  # ~ is older than the end, ^ is newer than it; both are older than anything else
            if mark in (a[:1], b[:1]):
                if a[:1] != b[:1]:
                    other = b if a[:1] == mark else a
                    older = mark == "~" or bool(other)
                    return -1 if older == (a[:1] == mark) else 1
                a, b = a[1:], b[1:]
                break
        else:
            if not a or not b:
                break
            kind = r"[0-9]+" if a[0] in digits else r"[A-Za-z]+"
            one, two = re.match(kind, a), re.match(kind, b)
            assert one
            if not two:  # a number is newer than letters
                return 1 if a[0] in digits else -1
            x, y = one.group(), two.group()
            order = _order(_number(x), _number(y)) if a[0] in digits else _order(x, y)
            if order:
                return order
            a, b = a[len(x):], b[len(y):]
    return _order(bool(a), bool(b))


# ---------------------------------------------------------------- pip

_PEP440 = re.compile(
    r"v?(?:([0-9]+)!)?([0-9]+(?:\.[0-9]+)*)(?:[-_.]?(alpha|a|beta|b|preview|pre|c|rc)[-_.]?([0-9]*))?"
    r"(?:-([0-9]+)|[-_.]?(post|rev|r)[-_.]?([0-9]*))?(?:[-_.]?(dev)[-_.]?([0-9]*))?"
    r"(?:\+([a-z0-9]+(?:[-_.][a-z0-9]+)*))?", re.IGNORECASE | re.ASCII)
_PRE = {"alpha": 0, "a": 0, "beta": 1, "b": 1, "preview": 2, "pre": 2, "c": 2, "rc": 2}


def _pip(a: str, b: str) -> int:
    """What is no PEP 440 version is older than any that is one."""
    key_a, key_b = _pip_key(a), _pip_key(b)
    if not key_a or not key_b:
        return _order(bool(key_a), bool(key_b)) or _order(a, b)
    # a range that names no local part means all of them: 2.1.0+cpu is "= 2.1.0"
    return _order(key_a[:-1], key_b[:-1]) or (_order(key_a[-1], key_b[-1]) if "+" in b else 0)


def _pip_key(version: str) -> tuple[Any, ...]:
    match = _PEP440.fullmatch(version.strip())
    if not match:
        return ()
    epoch, release, pre, pre_n, post_n, post, post_m, dev, dev_n, local = match.groups()
    numbers = [_number(part) for part in release.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    has_post = post_n is not None or post is not None
    # 1.dev1 < 1a1.dev1 < 1a1 < 1 < 1.post1.dev1 < 1.post1
    stage = (_PRE[pre.lower()], _number(pre_n)) if pre else (-1, 0) if dev and not has_post else (3, 0)
    after = _number(post_n or post_m or "") if has_post else -1
    before = _number(dev_n) if dev else float("inf")
    words = tuple((1, _number(word), "") if not word.strip(digits) else (0, 0, word.lower())
                  for word in re.split(r"[-_.]", local)) if local else ()
    return _number(epoch or ""), numbers, stage, after, before, words


# ---------------------------------------------------------------- apk

_APK = re.compile(r"([0-9]+)((?:\.[0-9]+)*)([a-z]?)((?:_[a-z]+[0-9]*)*)(?:~[0-9a-f]+)?(?:-r([0-9]+))?", re.ASCII)
_SUFFIXES = {"alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 1, "svn": 2, "git": 3, "hg": 4, "p": 5}


def _apk(a: str, b: str) -> int:
    key_a, key_b = _apk_key(a), _apk_key(b)
    if not key_a or not key_b:
        return _order(bool(key_a), bool(key_b)) or _order(a, b)
    return _order(key_a[:-1], key_b[:-1]) or (_order(key_a[-1], key_b[-1]) if "-r" in b else 0)


def _apk_key(version: str) -> tuple[Any, ...]:
    match = _APK.fullmatch(version)
    if not match:
        return ()
    first, more, letter, suffixes, release = match.groups()
    # with a zero in front a part is a fraction: 1.01 < 1.1
    parts = [(0, 0, part) if part.startswith("0") else (1, _number(part), "") for part in more.split(".")[1:]]
    words = re.findall(r"_([a-z]+)([0-9]*)", suffixes)
    ranks = [(_SUFFIXES.get(word, 0), _number(number)) for word, number in words]
    return _number(first), parts, letter, [*ranks, (0, 0)], _number(release or "")


_SYSTEMS: dict[str, Callable[[str, str], int]] = {"dpkg": _dpkg, "rpm": _rpm, "pip": _pip, "apk": _apk}
SYSTEMS = tuple(_SYSTEMS)
