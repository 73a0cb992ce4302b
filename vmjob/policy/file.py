"""What a site allows: ``/etc/vmjob/policy.yaml`` and the lists of digests beside it, read and checked. The decision is
in policy.verdict; policy.schema.json and docs/site-admin.md say what the words mean."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Optional

from vmjob.core import config
from vmjob.core.errors import JobError, PolicyBroken
from vmjob.core.machinetext import lines
from vmjob.core.model import Network

SITE = "site"  # the endorser of the digests in ``trust``
SUBSCRIPTIONS = Path("/var/lib/vmjob/lists")
# not X509_CERT_DIR, which is the user's to set
AUTHORITIES = Path("/etc/grid-security/certificates")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})(?:\s+(.*))?\Z")
_LIMITS = ("memory", "cpus", "lifetime", "networks")
_WHO = ("user", "group", "vo", "fqan")


@dataclass(frozen=True)
class Limits:
    """The most a guest may have; bytes, seconds. None: no limit."""

    memory: Optional[int] = None
    cpus: Optional[int] = None
    lifetime: Optional[int] = None
    networks: Optional[tuple[Network, ...]] = None

    def also(self, other: Limits) -> Limits:
        """What both allow."""
        def least(one: Optional[int], two: Optional[int]) -> Optional[int]:
            return min((value for value in (one, two) if value is not None), default=None)

        if self.networks is None or other.networks is None:
            networks = self.networks if other.networks is None else other.networks
        else:
            networks = tuple(one for one in self.networks if one in other.networks)
        return Limits(least(self.memory, other.memory), least(self.cpus, other.cpus),
                      least(self.lifetime, other.lifetime), networks)

    @staticmethod
    def widest(each: Sequence[Limits]) -> Limits:
        """The most that one of them or another gives; nothing where there is none. Pure."""
        def most(values: Sequence[Optional[int]]) -> Optional[int]:
            known = [value for value in values if value is not None]
            return max(known, default=0) if len(known) == len(values) else None

        networks = None if any(limits.networks is None for limits in each) else tuple(
            network for network in Network if any(network in (limits.networks or ()) for limits in each))
        return Limits(most([limits.memory for limits in each]), most([limits.cpus for limits in each]),
                      most([limits.lifetime for limits in each]), networks)


@dataclass(frozen=True)
class Accepted:
    """An endorser that is believed: subject and authority of the certificate; ``lists``: dc:identifier of the lists
    that it is believed in, none for all."""

    name: str
    dn: str
    ca: str
    lists: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vo:
    """Jobs of these users or groups of the node, or with a token of these issuers, are this VO's. Globs."""

    name: str
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    issuers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """``name``: what it is called, or why it refuses. ``who``: globs by kind (user, group, vo, fqan), each kind must
    fit. ``images``: globs of digests, and of identifiers and titles in a list that is believed."""

    number: int
    name: str
    allow: bool
    who: tuple[tuple[str, tuple[str, ...]], ...] = ()
    images: tuple[str, ...] = ()
    endorsers: tuple[str, ...] = ()
    tested: bool = False
    unsigned: bool = False
    limits: Limits = Limits()


@dataclass(frozen=True)
class Policy:
    """``rules`` None: all that is not denied may run within the limits. ``denied`` and ``trusted``: hexadecimal SHA-256
    → where it stands and why. ``min_version``: the oldest vmjob that may run here, empty for any."""

    file: Path
    rules: Optional[tuple[Rule, ...]] = None
    endorsers: tuple[Accepted, ...] = ()
    vos: tuple[Vo, ...] = ()
    limits: Limits = Limits()
    denied: Mapping[str, str] = field(default_factory=dict)
    trusted: Mapping[str, str] = field(default_factory=dict)
    subscriptions: Path = SUBSCRIPTIONS
    authorities: Path = AUTHORITIES
    min_version: str = ""


def owners(path: Path) -> set[int]:
    """Uids that may have written a policy: root; one that is not the site's own, also whoever runs this."""
    return {0} if path == config.SITE_POLICY else {0, os.getuid()}


def load(path: Path) -> Policy:
    """The policy in ``path``, with the lists of digests that it names. Read again at each start, so that a digest that
    was just denied counts. Raises PolicyBroken: nothing may start by a policy that cannot be read, or that somebody
    else could have written."""
    from vmjob.core.safepath import safe
    from vmjob.core.schema import load_yaml

    may = owners(path)
    body = load_yaml(safe(path, may), "policy", PolicyBroken, strict=True)
    denied = {**_digests(body.get("deny", []), f"{path}: deny"), **_from_files(path, body, "deny_files", may)}
    trusted = {**_digests(body.get("trust", []), f"{path}: trust"), **_from_files(path, body, "trust_files", may)}
    accepted = tuple(Accepted(name, one["dn"], one["ca"], _words(one, "lists", f"{path}: endorsers.{name}"))
                     for name, one in body.get("endorsers", {}).items())
    vos = tuple(Vo(name, *(_words(one, key, f"{path}: vos.{name}") for key in ("users", "groups", "issuers")))
                for name, one in body.get("vos", {}).items())
    rules = None
    if "rules" in body:
        names, groups = {one.name for one in accepted} | {SITE}, {one.name for one in vos}
        rules = tuple(_rule(one, n + 1, f"{path}: rules.{n}", names, groups) for n, one in enumerate(body["rules"]))
    elif key := next((key for key in ("endorsers", "vos", "trust", "trust_files") if body.get(key)), None):
        raise PolicyBroken(f"{path}: {key} without rules says nothing",
                           "add rules, such as rules: [{allow: all who run an endorsed image}]")
    if any(one.name == SITE for one in accepted):
        raise PolicyBroken(f"{path}: endorsers.{SITE}: this name stands for the digests in trust",
                           "choose another name")
    return Policy(path, rules, accepted, vos, _limits(body.get("limits", {}), f"{path}: limits"), denied, trusted,
                  Path(body.get("subscriptions", SUBSCRIPTIONS)), Path(body.get("authorities", AUTHORITIES)),
                  body.get("min_version", ""))


def _rule(body: Mapping[str, Any], number: int, where: str, endorsers: Collection[str], vos: Collection[str]) -> Rule:
    if ("allow" in body) == ("refuse" in body):
        raise PolicyBroken(f"{where}: one of allow and refuse must be there, with a name or a reason",
                           "such as allow: our users")
    allow = "allow" in body
    extra = [key for key in ("unsigned", "tested", *_LIMITS) if key in body]
    if not allow and extra:
        raise PolicyBroken(f"{where}: {extra[0]} has no meaning in a rule that refuses", "leave it out")
    wanted = _words(body, "endorser", where)
    for word in wanted:
        if not any(fnmatchcase(name, word) for name in endorsers):
            raise PolicyBroken(f"{where}.endorser: '{word}' is not among endorsers",
                               f"known: {', '.join(sorted(endorsers))}")
    # who refuses may name a VO by what the job says of itself; who allows must say how it is known
    for word in _words(body, "vo", where) if allow else ():
        if not any(fnmatchcase(name, word) for name in vos):
            raise PolicyBroken(f"{where}.vo: '{word}' is not among vos", "say in vos by which groups, users or token "
                               "issuers of this node its jobs are known")
    if body.get("unsigned") and (wanted or body.get("tested")):
        raise PolicyBroken(f"{where}: unsigned: true, and {'endorser' if wanted else 'tested'} too: not both",
                           "write two rules")
    who = tuple((kind, _words(body, kind, where)) for kind in _WHO if kind in body)
    return Rule(number, body["allow" if allow else "refuse"], allow, who, _words(body, "image", where), wanted,
                body.get("tested", False), body.get("unsigned", False), _limits(body, where))


def _limits(body: Mapping[str, Any], where: str) -> Limits:
    from vmjob.core.units import parse_duration, parse_size

    try:
        memory = parse_size(body["memory"], f"{where}.memory") if "memory" in body else None
        lifetime = parse_duration(body["lifetime"], f"{where}.lifetime") if "lifetime" in body else None
    except JobError as wrong:
        raise PolicyBroken(wrong.message, wrong.hint) from wrong
    try:
        networks = tuple(map(Network, _words(body, "networks", where))) if "networks" in body else None
    except ValueError as unknown:
        raise PolicyBroken(f"{where}.networks: {unknown}", "nat, isolated and none are known") from unknown
    return Limits(memory, body.get("cpus"), lifetime, networks)


def _words(body: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """One word or several; none at all, or an empty one, would fit nobody, which is never meant."""
    value = body.get(key)
    words = (value,) if isinstance(value, str) else tuple(value or ())
    if key in body and not (words and all(words)):
        raise PolicyBroken(f"{where}.{key}: it is empty", "say who or what is meant, * for all, or leave the key out")
    return words


# ---------------------------------------------------------------- digests


def _digests(lines: Collection[str], where: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        fits = _DIGEST.match(text)
        if not fits or not text.replace("\t", " ").isprintable():  # a carriage return would hide the next digest
            raise PolicyBroken(f"{where}:{number}: {text[:80]!r} is no digest",
                               "one a line: sha256:, 64 hexadecimal digits, and behind a space the reason")
        found[fits.group(1)] = f"{where}:{number}" + (f": {fits.group(2)}" if fits.group(2) else "")
    return found


def _from_files(path: Path, body: Mapping[str, Any], key: str, may: Collection[int]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, pattern in enumerate(_words(body, key, str(path))):
        try:
            for file in _files(Path(pattern), may):
                found.update(_digests(lines(file.read_bytes().decode()), str(file)))
        except (OSError, UnicodeDecodeError) as unreadable:
            raise PolicyBroken(f"{path}: {key}.{number}: {pattern}: cannot be read: {unreadable}",
                               "it must be text that all may read") from unreadable
        except PolicyBroken as broken:
            raise PolicyBroken(f"{path}: {key}.{number}: {broken}", broken.hint) from broken
    return found


def _files(pattern: Path, may: Collection[int]) -> Iterator[Path]:
    """The files that a pattern stands for; no dot files, which a feed may still be writing. A folder that is not there
    is no empty one: the feed is broken then."""
    from vmjob.core.safepath import safe

    folder = pattern.parent
    if "*" in str(folder) or "?" in str(folder):
        raise PolicyBroken(f"{pattern}: * and ? only in the last part", "name each folder")
    if "*" not in pattern.name and "?" not in pattern.name:
        yield safe(pattern, may)
        return
    for name in sorted(entry.name for entry in safe(folder, may).iterdir()):
        if fnmatchcase(name, pattern.name) and not name.startswith("."):
            yield safe(folder / name, may)
