"""Whose jobs come to a node: accounts as maps of compute elements name them. Pure.

Read: HTCondor's mapfiles (``METHOD PRINCIPAL USER``, the principal a word, quoted, or a /regular expression/),
grid-mapfiles (``"DN" USER[,USER]``), pool accounts in both (``.atlas``: atlas001, atlas002 …), plain lists of accounts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from vmjob.core.machinetext import lines

_LONGEST = 8192  # of a line
_METHODS = "anonymous claimtobe fs fs_remote gsi idtoken idtokens kerberos munge ntsspi password pool scitoken " \
    "scitokens ssl token tokens *"
_MAPFILE = re.compile(r'(\S+)\s+("(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/[A-Za-z]*|\S+)\s+(\S+)\Z')
_GRIDMAP = re.compile(r'(?:"(?:[^"\\]|\\.)*"|/\S*)\s+([^\s,]+(?:\s*,\s*[^\s,]+)*)\Z')
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
_POOL = re.compile(r"\.[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
# the domain of accounts in HTCondor-CE's maps; others (…@daemon.htcondor.org, …@unmapped.htcondor.org) are nobody's
_DOMAIN = "users.htcondor.org"
_NOBODY = ("GSS_ASSIST_GRIDMAP", "-", "-:-")


@dataclass(frozen=True)
class Found:
    """``users``: accounts that are on this node, in the order of the map; ``odd``: what was left out, and why, each
    with file and line."""

    users: tuple[str, ...]
    odd: tuple[str, ...] = ()


def accounts(text: str, where: str, known: Collection[str]) -> Found:
    """Those of ``known``, the accounts of this node, whom a map names. ``where``: the map, for messages."""
    users: dict[str, None] = {}
    odd: list[str] = []
    for number, line in enumerate(lines(text), 1):
        place = f"{where}:{number}"
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        try:
            for name in _targets(words):
                users.update(dict.fromkeys(_on_node(name, known)))
        except ValueError as why:
            odd.append(f"{place}: {why}")
    return Found(tuple(users), tuple(odd))


def _targets(line: str) -> Sequence[str]:
    """Whom one line names. Raises ValueError with the reason why it is left out."""
    if len(line) > _LONGEST:
        raise ValueError(f"a line of {len(line)} characters")
    if not line.isprintable():
        raise ValueError("it has control characters")
    if line.lower().startswith("@include"):
        raise ValueError("other files are not followed: name them with --map too")
    plain = NAME.match(line) or _POOL.match(line)
    if plain:
        return (line,)
    mapped = _MAPFILE.match(line)
    if mapped and mapped.group(1).lower() in _METHODS.split():
        return (_account(mapped.group(3)),)
    grid = _GRIDMAP.match(line)
    if grid:
        return [_account(name.strip()) for name in grid.group(1).split(",")]
    raise ValueError('neither METHOD PRINCIPAL USER (mapfile), nor "DN" USER (grid-mapfile), nor an account')


def _account(target: str) -> str:
    name, _, domain = target.partition("@")
    if "\\" in target:
        raise ValueError(f"the account {target} is made of the principal: name accounts with --users")
    if target in _NOBODY or domain not in ("", _DOMAIN):
        raise ValueError(f"{target} is no account of a node")
    if not NAME.match(name) and not _POOL.match(name):
        raise ValueError(f"{name[:80]!r} cannot be an account")
    return name


def _on_node(name: str, known: Collection[str]) -> Iterator[str]:
    if name == "root":
        raise ValueError("root needs no group, and jobs should not be root's")
    if not name.startswith("."):
        if name not in known:
            raise ValueError(f"there is no account {name} on this node")
        yield name
        return
    members = re.compile(re.escape(name[1:]) + r"[0-9]+\Z")
    found = sorted(filter(members.match, known))
    if not found:
        raise ValueError(f"there is no pool account {name[1:]}001 or so on this node")
    yield from found
