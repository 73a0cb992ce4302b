"""What changes on a node when virtual machines are let in, and when they are let in no more: worked out whole, from
what is there, before anything is touched. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Optional

from vmjob.core.machinetext import is_number, lines
from vmjob.core.site_errors import NodeUnchanged
from vmjob.node import snippets
from vmjob.node.enable import groupfile
from vmjob.node.enable.usermap import NAME
from vmjob.node.record import RECORD, Record, digest

GROUP, GSHADOW = PurePosixPath("/etc/group"), PurePosixPath("/etc/gshadow")
_UDEV = snippets.RULE_FILE.parent
ABOVE = tuple(reversed(snippets.STATE.parents))[1:]  # a bare tree may lack them
FOLDERS = {**dict.fromkeys(ABOVE, 0o755), snippets.STATE: 0o755, snippets.RUNS: 0o1777, snippets.CACHE: 0o1777,
           _UDEV.parent: 0o755, _UDEV: 0o755}
_SECRET = (GROUP, GSHADOW)
# whoever is in one of these is root, or soon: letting users into KVM is not that
_MIGHTY = {"root", "sudo", "wheel", "adm", "admin", "disk", "shadow", "docker", "lxd", "libvirt"}


@dataclass(frozen=True)
class State:
    """What is there. ``texts``: of files, None: there is none. ``folders``: modes. ``users``: accounts with the numbers
    of their own groups. ``taken``: numbers of groups, besides those in /etc/group; ``range``: from which a new one
    comes. ``condor``: the configuration of a startd, empty where there is no HTCondor."""

    texts: Mapping[PurePosixPath, Optional[str]]
    folders: Mapping[PurePosixPath, Optional[int]]
    users: Mapping[str, int]
    record: Optional[Record] = None
    taken: frozenset[int] = frozenset()
    range: tuple[int, int] = (101, 999)
    condor: str = ""


@dataclass(frozen=True)
class Change:
    """Of a file: ``old`` None: it is made; ``new`` None: it is removed."""

    path: PurePosixPath
    old: Optional[str]
    new: Optional[str]


@dataclass(frozen=True)
class Plan:
    """``folders``: path, mode before, mode after; None: not there. ``record``: as it is to be, None: none. ``notes``:
    what an admin should know."""

    folders: tuple[tuple[PurePosixPath, Optional[int], Optional[int]], ...] = ()
    files: tuple[Change, ...] = ()
    record: Optional[Record] = None
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.folders and not self.files and self.record is not None

    def diff(self) -> str:
        """As diff -u prints it; folders as git tells modes. Passwords are left out."""
        forgotten = [] if self.record else [f"remove file {RECORD}\n"]
        return "".join([*(_folder(*one) for one in self.folders), *map(_diff, self.files), *forgotten])


def _folder(path: PurePosixPath, old: Optional[int], new: Optional[int]) -> str:
    if new is None:
        return f"remove folder {path} (if it is empty)\n"
    return f"new folder {path} (mode {new:04o})\n" if old is None else f"{path}: mode {old:04o} → {new:04o}\n"


def _diff(change: Change) -> str:
    show = groupfile.masked if change.path in _SECRET else str
    old, new = ([] if text is None else lines(show(text)) for text in (change.old, change.new))
    head = f"new file {change.path}\n" if change.old is None else ""
    changed = difflib.unified_diff(old, new, "/dev/null" if change.old is None else str(change.path),
                                 "/dev/null" if change.new is None else str(change.path), n=1, lineterm="")
    text = head + "".join(f"{line}\n" for line in changed)
    return text.encode(errors="replace").decode()


# ---------------------------------------------------------------- letting in


def enable(state: State, group: str, users: Sequence[str]) -> Plan:
    """The plan that lets ``users`` into KVM through ``group``. Raises NodeUnchanged."""
    old = state.record
    if not NAME.match(group) or group in _MIGHTY:
        raise NodeUnchanged(f"{group!r} is no group for users of KVM", "name another one with --group, such as kvm")
    if old and old.group != group:
        raise NodeUnchanged(f"this node was enabled with the group {old.group}, not {group}",
                            "vmjob site disable first, or leave --group out")
    notes: list[str] = []
    members, changes = _members(state, group, users)
    folders = [(path, state.folders.get(path), mode) for path, mode in FOLDERS.items()
               if state.folders.get(path) is None or (mode == 0o1777 and state.folders[path] != mode)]
    changes += _written(state, group, notes)
    record = _recorded(state, members, folders, changes)
    return Plan(tuple(folders), tuple(changes), record, tuple(notes))


def _members(state: State, group: str, users: Sequence[str]) -> tuple[Record, list[Change]]:
    """The group's part of the record, and what becomes of group and gshadow."""
    text, shadow = state.texts.get(GROUP), state.texts.get(GSHADOW)
    if text is None:
        raise NodeUnchanged(f"{GROUP}: there is none", "is this the root of a system?")
    there, hidden = _entry(GROUP, text, group), _entry(GSHADOW, shadow or "", group)
    was = state.record or Record(group, 0)
    if there is None:
        gid = _free(state, text)
        line, made = groupfile.Entry(group, "x", str(gid), ()), True
    else:
        if not is_number(there.number):
            raise NodeUnchanged(f"{GROUP}: the group {group} has the number {there.number!r}", "fix it first: vigr")
        gid, line, made = int(there.number), there, was.made and was.gid == int(there.number)
    wanted = [who for who in users if state.users.get(who) != gid]  # whose own group it is, is in it
    new = groupfile.with_members(line, wanted)
    added = tuple(who for who in new.members if who not in line.members)
    kept = tuple(who for who in was.members if who in line.members)
    changes = [Change(GROUP, text, groupfile.replaced(text, group, new))] if new != there else []
    shadow_added: tuple[str, ...] = ()
    # a gshadow without that group was so before, and no program needs the line
    if shadow is not None and (hidden or made):
        line = hidden or groupfile.Entry(group, "!", "", ())
        new = groupfile.with_members(line, [who for who in wanted if who in added or who in kept])
        shadow_added = tuple(who for who in new.members if who not in line.members)
        changes += [Change(GSHADOW, shadow, groupfile.replaced(shadow, group, new))] if new != hidden else []
    kept_shadow = tuple(who for who in was.shadow if hidden and who in hidden.members)
    return Record(group, gid, made, kept + added, kept_shadow + shadow_added), changes


def _entry(path: PurePosixPath, text: str, group: str) -> Optional[groupfile.Entry]:
    try:
        return groupfile.entry(text, group)
    except ValueError as odd:
        raise NodeUnchanged(f"{path}: {odd}", "fix it first: vigr, grpck") from odd


def _free(state: State, text: str) -> int:
    """A number for a new group, as groupadd -r takes it: the highest of the system's that is free below those taken."""
    first, last = state.range
    used = groupfile.numbers(text) | state.taken | set(state.users.values())
    found = next((gid for gid in range(last, first - 1, -1) if gid not in used), None)
    if found is None:
        raise NodeUnchanged(f"no number from {first} to {last} is free for a new group",
                            "make the group by hand (groupadd), or name another one with --group")
    return found


def _written(state: State, group: str, notes: list[str]) -> list[Change]:
    """Files that are all ours; one that somebody else wrote is not touched."""
    texts = {snippets.RULE_FILE: snippets.udev_rule(group)}
    if state.condor:
        texts[snippets.CONDOR_FILE] = state.condor
    changes = []
    for path, new in texts.items():
        old = state.texts.get(path)
        if old is None or (old != new and state.record and state.record.wrote(path, old)):
            changes.append(Change(path, old, new))
        elif old != new and state.record and str(path) in dict(state.record.files):
            notes.append(f"{path} was changed by hand since, and stays as it is")
        elif old != new:
            raise NodeUnchanged(f"{path} is there, and not from vmjob site enable-kvm",
                                "move it away, then it is written again")
    return changes


def _recorded(state: State, members: Record, folders: Sequence[tuple[PurePosixPath, Optional[int], Optional[int]]],
              changes: Sequence[Change]) -> Record:
    """What was ours and still is there, with what comes now."""
    old = state.record or members
    files = {path: sums for path, sums in old.files if state.texts.get(PurePosixPath(path)) is not None}
    for change in changes:
        if change.path not in _SECRET and change.new is not None:
            path, sum_ = str(change.path), digest(change.new)
            files[path] = (*(one for one in files.get(path, ()) if one != sum_), sum_)
    made = [path for path in old.folders if state.folders.get(PurePosixPath(path)) is not None]
    made += [str(path) for path, mode, _ in folders if mode is None]
    modes = [one for one in old.modes if state.folders.get(PurePosixPath(one[0])) == one[2]]
    modes += [(str(path), mode, new) for path, mode, new in folders if mode is not None and new is not None]
    return replace(members, files=tuple(sorted(files.items())), folders=tuple(dict.fromkeys(made)), modes=tuple(modes))


# ---------------------------------------------------------------- undoing it


def disable(state: State) -> Plan:
    """The plan that undoes what the record says, where it is still as it was left. Raises NodeUnchanged."""
    record = state.record
    if record is None:
        raise NodeUnchanged(f"there is no {RECORD}: this node was not enabled by vmjob",
                            "vmjob site check says what it has; nothing is undone that vmjob did not do")
    notes: list[str] = []
    changes = _left(state, record, notes)
    for name, _ in record.files:
        path = PurePosixPath(name)
        text = state.texts.get(path)
        if text is not None and record.wrote(path, text):
            changes.append(Change(path, text, None))
        elif text is not None:
            notes.append(f"{path} was changed by hand since, and stays")
    folders: list[tuple[PurePosixPath, Optional[int], Optional[int]]] = []
    for name, was, now in record.modes:
        if state.folders.get(PurePosixPath(name)) == now:
            folders.append((PurePosixPath(name), now, was))
    for name in sorted(record.folders, key=len, reverse=True):
        if state.folders.get(PurePosixPath(name)) is not None:
            folders.append((PurePosixPath(name), state.folders[PurePosixPath(name)], None))
    return Plan(tuple(folders), tuple(changes), None, tuple(notes))


def _left(state: State, record: Record, notes: list[str]) -> list[Change]:
    """Members out again, and the group where it was made for them and nobody else is in it."""
    text, shadow = state.texts.get(GROUP), state.texts.get(GSHADOW)
    there = _entry(GROUP, text or "", record.group)
    hidden = _entry(GSHADOW, shadow or "", record.group)
    if there is None and not record.made:
        notes.append(f"the group {record.group} is gone")
    if there is not None and there.number != str(record.gid):
        notes.append(f"the group {record.group} has the number {there.number} now, not {record.gid}: it stays as it is")
        return []
    rest = there and groupfile.without(there, record.members)
    own = sorted(who for who, gid in state.users.items() if gid == record.gid)
    gone = record.made and not (rest and rest.members) and not own
    if record.made and not gone:
        who = [*(rest.members if rest else ()), *own]
        notes.append(f"the group {record.group} stays, as others are in it: {', '.join(who[:10])}")
    changes = []
    if text is not None and there is not None and (gone or rest != there):
        changes.append(Change(GROUP, text, groupfile.replaced(text, record.group, None if gone else rest)))
    if shadow is not None and hidden is not None:
        left = groupfile.without(hidden, record.shadow)
        if gone or left != hidden:
            changes.append(Change(GSHADOW, shadow, groupfile.replaced(shadow, record.group, None if gone else left)))
    return changes
