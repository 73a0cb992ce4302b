"""Texts that others wrote. What an admin wrote is refused with its key; what comes from image lists and nodes is made
harmless, so that no endorser can take a site off the air."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vmjob.ads.site_ad import line
from vmjob.ads.site_yaml import Site
from vmjob.core.errors import PolicyBroken
from vmjob.core.site_errors import SiteBroken
from vmjob.policy.file import Policy

_ENTRY = re.compile(r"\bdn:", re.IGNORECASE)  # where a BDII begins a new entry
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")  # as site.yaml's
_AUTHORITY = re.compile(r"^[a-z][a-z0-9+-]*://[^/]*")
_LONGEST = 255  # characters of an address, as site-ad.schema.json
_OURS = ("file", "accounting")


def check_vos(site: Site, policies: Sequence[Policy]) -> None:
    """Raises PolicyBroken for a VO whose name cannot be published: the policies' are, where the site names none."""
    for policy, vo in ((one, vo) for one in policies for vo in one.vos if not site.vos):
        if not _WORD.match(vo.name):
            raise PolicyBroken(f"{policy.file}: vos.{line(vo.name, 80)}: no name for a VO that can be published",
                               f"letters, digits, . _ and -; or name the VOs of the site in {site.file}: vos")


def check(site: Site) -> None:
    """Raises SiteBroken naming file and key for a text that cannot be published as it stands, and for words that
    contradict each other."""
    for key, text in _texts({**{key: value for key, value in asdict(site).items() if key not in _OURS},
                             "names": dict(site.names)}, ""):
        strange = next((c for c in text if not c.isprintable()), "")
        if strange:
            raise SiteBroken(f"{site.file}: {key}: there is a character U+{ord(strange):04X} in it",
                             "write one line of printable characters")
        # of an address the host has dn: in large letters (ldif.py)
        if _ENTRY.search(_AUTHORITY.sub("", text) if key.endswith(".url") else text):
            raise SiteBroken(f"{site.file}: {key}: 'dn:' begins a new entry in a BDII", "write it differently")
    _lengths(site)
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


def _lengths(site: Site) -> None:
    for number, element in enumerate(site.elements):
        if len(element.url) > _LONGEST:
            raise SiteBroken(f"{site.file}: elements.{number}.host: with it the url has {len(element.url)} characters",
                             f"a host's name is shorter; at most {_LONGEST} are published")


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
