"""A site's security feed (schemas/feed.schema.json): versions of packages that it does not want in images."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Optional

from vmjob.core.errors import JobError
from vmjob.vetting.packages import Listing, Package, pip_name
from vmjob.vetting.versions import Constraint, fits, parse_range

SEVERITIES = ("critical", "high", "medium", "low", "")


@dataclass(frozen=True)
class Rule:
    """One entry of a feed. ``bad``: ranges as text and as what must hold; ``os``: empty for all."""

    name: str
    system: str
    bad: tuple[tuple[str, tuple[Constraint, ...]], ...]
    os: tuple[str, ...] = ()
    fixed: str = ""
    reference: str = ""
    severity: str = ""
    feed: str = ""


@dataclass(frozen=True)
class Feed:
    """``named``: rules by the name of their package; ``patterns``: those whose name has a ``*``."""

    title: str
    named: dict[str, list[Rule]] = field(default_factory=dict)
    patterns: list[Rule] = field(default_factory=list)

    def rules(self, name: str) -> Iterator[Rule]:
        yield from self.named.get(name, ())
        yield from (rule for rule in self.patterns if fnmatchcase(name, rule.name))


@dataclass(frozen=True)
class Finding:
    """A package that a rule calls bad. ``range``: which of its ranges."""

    package: Package
    rule: Rule
    range: str


def load(path: Path, now: Optional[float] = None) -> Feed:
    """Read a feed. Raises JobError that names the file and the entry, and for one that has expired at ``now``
    (epoch; None: now)."""
    from vmjob.core.schema import load_yaml

    body = load_yaml(path, "feed")
    expires = _moment(body.get("expires"), f"{path}: expires")
    if expires is not None and expires <= (time.time() if now is None else now):
        raise JobError(f"{path}: the feed {body['title']} has expired on {body['expires']}",
                       "fetch the newer one: an old feed would call images clean that are not")
    _moment(body.get("created"), f"{path}: created")
    feed = Feed(body["title"])
    for number, entry in enumerate(body["packages"]):
        rule = _rule(entry, feed.title, f"{path}: packages[{number}]")
        if "*" in rule.name:
            feed.patterns.append(rule)
        else:
            for name in {rule.name, pip_name(rule.name)} if rule.system in ("pip", "any") else {rule.name}:
                feed.named.setdefault(name, []).append(rule)
    return feed


def _rule(entry: dict[str, Any], feed: str, where: str) -> Rule:
    ranges = entry.get("bad") or ([f"< {entry['fixed']}"] if "fixed" in entry else [])
    if not ranges:
        raise JobError(f"{where} ({entry['name']}): neither bad nor fixed says which versions are bad",
                       'write bad: ["< 1.2-3"] or fixed: 1.2-3; for all versions bad: ["*"]')
    bad = []
    for text in ranges:
        try:
            bad.append((text, parse_range(text)))
        except ValueError as wrong:
            raise JobError(f"{where} ({entry['name']}): bad: {wrong}",
                           "such as '>= 3.0, < 3.0.11-1~deb12u2'") from wrong
    return Rule(entry["name"], entry.get("system", "any"), tuple(bad), tuple(entry.get("os", ())),
                entry.get("fixed", ""), entry.get("reference", ""), entry.get("severity", ""), feed)


def _moment(text: Optional[str], where: str) -> Optional[float]:
    if text is None:
        return None
    try:
        return datetime.strptime(text[:10] + (text[10:] or "T00:00:00Z"), "%Y-%m-%dT%H:%M:%SZ").replace(
            tzinfo=timezone.utc).timestamp()
    except ValueError as wrong:
        raise JobError(f"{where}: there is no such day or time: {text}", "such as 2026-01-31T12:00:00Z") from wrong


def findings(feeds: Sequence[Feed], listing: Listing, more: Iterable[Package] = ()) -> tuple[Finding, ...]:
    """What the feeds say of the packages of an image, the gravest first; ``more``: packages beside the listed ones,
    some of which may be listed too."""
    found: dict[tuple[Package, str, str], Finding] = {}
    listed = {(one.system, one.name, one.version) for one in listing.packages}
    for package in (*listing.packages, *(one for one in more if (one.system, one.name, one.version) not in listed)):
        for name, version in _names(package).items():
            for feed in feeds:
                for rule in feed.rules(name):
                    bad = _bad(rule, package.system, version, listing.os)
                    if bad:
                        found.setdefault((package, rule.reference or bad, rule.feed), Finding(package, rule, bad))
    return tuple(sorted(found.values(), key=lambda f: (SEVERITIES.index(f.rule.severity), f.package.name,
                                                       f.package.system, f.rule.reference)))


def _names(package: Package) -> dict[str, str]:
    """The names a rule may mean it by, each with the version that belongs to it. A source package's version has
    no +b1, which tells only that the package was compiled once more."""
    names = {package.name: package.version}
    if package.source:
        names[package.source] = package.source_version or package.version
    return names


def _bad(rule: Rule, system: str, version: str, os: str) -> str:
    if rule.system not in ("any", system):
        return ""
    # a guest that does not tell its system may be any
    if rule.os and os and os not in rule.os and re.sub(r"-[^-]*$", "", os) not in rule.os:
        return ""
    return next((text for text, range_ in rule.bad if fits(system, version, range_)), "")
