"""Texts that others wrote. What an admin wrote is refused with its key; what comes from image lists and nodes is made
harmless, so that no endorser can take a site off the air."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vmjob.site_errors import SiteBroken
from vmjob.sitead import line
from vmjob.siteconfig import Site

_ENTRY = re.compile(r"\bdn:", re.IGNORECASE)  # where a BDII begins a new entry
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_OURS = ("file", "accounting")


def check(site: Site) -> None:
    """Raises SiteBroken naming file and key for a text that cannot be published as it stands, and for words that
    contradict each other."""
    for key, text in _texts({**{key: value for key, value in asdict(site).items() if key not in _OURS},
                             "names": dict(site.names)}, ""):
        strange = next((c for c in text if not c.isprintable()), "")
        if strange:
            raise SiteBroken(f"{site.file}: {key}: there is a character U+{ord(strange):04X} in it",
                             "write one line of printable characters")
        if _ENTRY.search(text):
            raise SiteBroken(f"{site.file}: {key}: 'dn:' begins a new entry in a BDII", "write it differently")
    for number, (digest, _) in enumerate(site.names):
        if not _DIGEST.match(digest):
            raise SiteBroken(f"{site.file}: names: '{line(digest, 80)}' is no digest",
                             "sha256: and 64 hexadecimal digits, as vmjob image list --json has it")
        if digest in [other for other, _ in site.names[:number]]:
            raise SiteBroken(f"{site.file}: names: {digest} has two names", "leave one out")
    for what, words in (("vos", list(site.vos)), ("elements", [f"{one.host}/{one.queue}" for one in site.elements]),
                        ("elements", [f"{one.url} {one.queue}" for one in site.elements])):
        twice = next((word for word in words if words.count(word) > 1), "")
        if twice:
            raise SiteBroken(f"{site.file}: {what}: {twice} stands there twice",
                             "leave one out, or tell them apart: host and queue" if what == "elements" else
                             "leave one out")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts in a configuration, with their keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _texts(one, f"{key}.{number}")
