"""What packages an image has, as a run of it told (guest/packages.sh), and where that is remembered.

The list is the image's own word: what it tells is parsed as hostile, but can be wrong. An image's bytes never change,
so neither does its list: ``packages/HEX.json`` in the store, by the image's digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pkgutil
import re
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from vmjob.errors import OutputRefused
from vmjob.model import Manifest

REPORT = "packages.tsv"
LIMIT = 32 * 2**20  # bytes of the report
_MOST = 200_000  # lines; a large Debian has 3,000 packages
_WORD, _MAYBE, _PATH = re.compile(r"[!-~]{1,256}"), re.compile(r"[!-~]{0,256}"), re.compile(r"[^\x00-\x1f\x7f]{1,4096}")
_PACKAGE = (_WORD, _WORD, _MAYBE, _MAYBE, _MAYBE)
_SHAPES = {"os": (_MAYBE, _MAYBE), "manager": (re.compile("dpkg|rpm|apk"),), "dpkg": _PACKAGE, "rpm": _PACKAGE,
           "apk": _PACKAGE, "python": (_PATH,), "installer": (_MAYBE, _PATH)}
_WHEEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._]*)-([0-9][A-Za-z0-9._+!]*)(?:-py[0-9.]+.*)?")
# a Python package here, with no word of who put it there, belongs to the system's packages
_SYSTEMS_OWN = re.compile(r"/usr/lib(64)?/")


@dataclass(frozen=True)
class Package:
    """``system``: dpkg, rpm, apk or pip. ``source``: the package it was built from, if its system tells."""

    system: str
    name: str
    version: str
    arch: str = ""
    source: str = ""
    source_version: str = ""


@dataclass(frozen=True)
class Listing:
    """All packages of the image with the digest ``digest``. ``os``: as debian-12, from os-release, or nothing;
    ``managers``: the package systems that have packages there, none in an image without one; ``taken``: epoch."""

    digest: str
    os: str
    managers: tuple[str, ...]
    packages: tuple[Package, ...]
    taken: float


def script() -> str:
    """The program that lists the packages in the guest."""
    return (pkgutil.get_data("vmjob", "guest/packages.sh") or b"").decode()


def parse(data: bytes, digest: str) -> Listing:
    """What guest/packages.sh wrote. Raises OutputRefused for what it never writes."""
    release, managers, packages, python, installers = "", [], set[Package](), [], dict[str, str]()
    for kind, words in _lines(data):
        if kind == "os":
            release = "-".join(filter(None, words))
        elif kind == "manager":
            managers.append(words[0])
        elif kind == "python":
            python.append(words[0])
        elif kind == "installer":
            installers[words[1]] = words[0]
        else:
            packages.add(_package(kind, words))
    for path in python:
        who = installers.get(path, "")
        theirs = who in ("debian", "rpm", "apk") or (not who and managers and _SYSTEMS_OWN.match(path))
        wheel = _WHEEL.fullmatch(re.sub(r"\.(dist|egg)-info$", "", PurePosixPath(path).name))
        if wheel and not theirs:
            packages.add(Package("pip", pip_name(wheel.group(1)), wheel.group(2)))
    return Listing(digest, release, tuple(managers), tuple(sorted(packages, key=astuple)), round(time.time(), 3))


def _lines(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """Kind and words of each line, of the shape that they must have."""
    lines = data.decode("utf-8", errors="surrogateescape").split("\n")
    if lines[-2:] != ["end", ""] or len(lines) > _MOST:
        raise _refused(len(lines), "too many lines" if len(lines) > _MOST else "it is cut short")
    for number, line in enumerate(lines[:-2], 1):
        kind, *words = line.split("\t")
        shapes = _SHAPES.get(kind, ())
        fits = len(words) == len(shapes) and all(shape.fullmatch(word) for shape, word in zip(shapes, words))
        if not shapes or not fits:
            raise _refused(number, "not what a list of packages has")
        yield kind, words


def _package(system: str, words: list[str]) -> Package:
    name, version, arch, source, source_version = words
    if system == "rpm":  # openssl-3.0.7-24.el9.src.rpm
        source, _, _ = re.sub(r"\.(no)?src\.rpm$", "", source).rpartition("-")[0].rpartition("-")
        source_version = version if source else ""
    return Package(system, name, version, arch, source, source_version)


def pip_name(name: str) -> str:
    """The one way to write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def made_from(manifest: Manifest) -> tuple[Package, ...]:
    """The packages that the manifest says went into the image: dpkg's ``name=version``, pip's ``name==version``."""
    found = []
    for word in manifest.made_from:
        name, equals, version = word.partition("=")
        if equals and name and version and _WORD.fullmatch(word):
            pip = version.startswith("=")
            found.append(Package("pip", pip_name(name), version[1:]) if pip else Package("dpkg", name, version))
    return tuple(found)


def _refused(line: int, why: str) -> OutputRefused:
    return OutputRefused(f"{REPORT} of the guest, line {line}: {why}",
                         "the image's shell or tools do not do as they should: vmjob image test")


# ---------------------------------------------------------------- remembered


def remember(listing: Listing, store: Path) -> None:
    """Keep it below the folder ``store``; a store that cannot be written serves all the same."""
    target = _place(listing.digest, store)
    spare = target.with_name(f".{target.name}.{os.getpid()}")
    document = {"schema": 1, "script": _edition(), "digest": listing.digest, "os": listing.os,
                "managers": listing.managers, "taken": listing.taken,
                "packages": [astuple(package) for package in listing.packages]}
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        spare.write_text(json.dumps(document) + "\n")
        spare.replace(target)


def remembered(digest: str, store: Path) -> Optional[Listing]:
    """The list of the image with this digest, if it was taken before, by the script of now."""
    try:
        body: dict[str, Any] = json.loads(_place(digest, store).read_text())
        if (body["schema"], body["script"], body["digest"]) != (1, _edition(), digest):
            return None
        return Listing(digest, body["os"], tuple(body["managers"]), tuple(Package(*one) for one in body["packages"]),
                       float(body["taken"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _place(digest: str, store: Path) -> Path:
    return store / "packages" / f"{digest.partition(':')[2]}.json"


def _edition() -> str:
    return hashlib.sha256(script().encode()).hexdigest()[:16]
