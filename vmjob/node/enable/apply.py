"""Reads a node, and makes a plan come true: under the lock of the accounts, each file whole, the record first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Optional

from vmjob.core import process
from vmjob.core.machinetext import is_number, lines
from vmjob.core.site_errors import NodeUnchanged
from vmjob.node import record, snippets
from vmjob.node.enable import plan, udev
from vmjob.node.enable.plan import Change, Plan, State
from vmjob.node.enable.usermap import NAME, Found, accounts
from vmjob.node.tree import Tree

_FILES = (plan.GROUP, plan.GSHADOW, snippets.RULE_FILE, snippets.CONDOR_FILE)
BEGUN = snippets.STATE.with_name(f".vmjob-new.{snippets.STATE.name}")
_PASSWD, _LOGIN = PurePosixPath("/etc/passwd"), PurePosixPath("/etc/login.defs")
DAEMON = "condor"  # as whom the startd's hook tests KVM
_LARGEST = 16 * 2**20  # of a map


def look(tree: Tree, group: Optional[str], startd: str, notes: list[str]) -> State:
    """What is there. ``group``: the one that is asked for; ``startd``: startd_text(). What an ordinary user may not
    read is left out, and told in ``notes``. Raises NodeUnchanged."""
    texts: dict[PurePosixPath, Optional[str]] = {}
    for path in (*_FILES, record.RECORD):
        try:
            texts[path] = tree.read(path)
        except NodeUnchanged as closed:
            if not isinstance(closed.__cause__, PermissionError):
                raise
            notes.append(f"{path} cannot be read by you, and is left out here")
            texts[path] = None
    known = texts.pop(record.RECORD)
    condor = tree.mode(snippets.CONDOR) is not None
    users = users_of(tree)
    keepers = {0, _number(tree, DAEMON)}
    if tree.real and group and f"\n{group}:" not in f"\n{texts[plan.GROUP]}":
        _elsewhere(group)
    # a node has those above, and may have them as links
    folders = {path: 0o755 if tree.real and path in plan.ABOVE else tree.mode(path, keepers) for path in plan.FOLDERS}
    return State(texts, folders, users,
                 record.parse(known) if known else None, _taken(tree), _range(tree), startd if condor else "")


def startd_text(tree: Tree) -> str:
    """HTCondor's configuration for a node, as this vmjob ships it; it names the hook of the package vmjob-site where
    the node has that."""
    from vmjob.job.pyz import SNIPPET, wrapper_text

    text = wrapper_text(SNIPPET).decode()
    place = snippets.PACKAGED if _packaged(tree) else snippets.ETC
    return text.replace(f"{snippets.ETC}/{snippets.HOOK}", f"{place}/{snippets.HOOK}")


def _packaged(tree: Tree) -> bool:
    return tree.read(snippets.PACKAGED / snippets.HOOK) is not None


class _Named(dict[str, int]):
    """With the accounts that the system tells of only when it is asked for one by its name (SSSD, mostly)."""

    def __contains__(self, name: object) -> bool:
        import pwd

        if not super().__contains__(name):
            try:
                self[str(name)] = pwd.getpwnam(str(name)).pw_gid
            except (KeyError, ValueError):
                return False
        return True


def users_of(tree: Tree) -> Mapping[str, int]:
    """Accounts of the node with the number of each one's own group: those in its /etc/passwd, and on this node itself
    those of LDAP and the like too, as far as these tell them all."""
    found: dict[str, int] = _Named() if tree.real else {}
    for line in lines(tree.read(_PASSWD) or ""):
        parts = line.split(":")
        if len(parts) == 7 and is_number(parts[3]):
            found.setdefault(parts[0], int(parts[3]))  # the C library takes the first, too
    if tree.real:
        import pwd

        found.update({one.pw_name: one.pw_gid for one in pwd.getpwall()})
    return found


def _number(tree: Tree, user: str) -> Optional[int]:
    """The number of an account of the tree."""
    parts = (line.split(":") for line in lines(tree.read(_PASSWD) or ""))
    return next((int(one[2]) for one in parts if one[0] == user and len(one) == 7 and is_number(one[2])), None)


def _elsewhere(group: str) -> None:
    import grp

    try:
        grp.getgrnam(group)
    except KeyError:
        return
    raise NodeUnchanged(f"the group {group} is not in {plan.GROUP}: it comes from a directory (LDAP, NIS)",
                        "add the members there; or name a group of this node's own: --group vmjob")


def _taken(tree: Tree) -> frozenset[int]:
    if not tree.real:
        return frozenset()
    import grp

    return frozenset(one.gr_gid for one in grp.getgrall())


def _range(tree: Tree) -> tuple[int, int]:
    """Numbers of system groups, as login.defs(5) has them."""
    words = dict(line.split()[:2] for line in lines(tree.read(_LOGIN) or "") if len(line.split()) >= 2)
    first, last = words.get("SYS_GID_MIN", ""), words.get("SYS_GID_MAX", "")
    return int(first) if is_number(first) else 101, int(last) if is_number(last) else 999


def chosen(users: Sequence[str], maps: Sequence[Path], known: Mapping[str, int]) -> Found:
    """Whom to let in: ``users`` must be accounts of the node, of the maps those who are. Raises NodeUnchanged."""
    missing = [who for who in users if who not in known or not NAME.match(who)]
    if missing:
        raise NodeUnchanged(f"there is no account {', '.join(missing)} on this node",
                            "check --users: names of accounts, with commas between them")
    found: dict[str, None] = dict.fromkeys(users)
    odd: list[str] = []
    for path in _each(maps):
        one = accounts(_read_map(path), str(path), known)
        found.update(dict.fromkeys(one.users))
        odd += one.odd
    if not found:
        raise NodeUnchanged("nobody to let in: " + (odd[0] if odd else "the map is empty"),
                            "name accounts of this node with --users" + (f"; {len(odd)} lines were left out"
                                                                         if odd else ""))
    return Found(tuple(found), tuple(odd))


def _each(maps: Sequence[Path]) -> Iterator[Path]:
    for path in maps:
        yield from sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]


def _read_map(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as unreadable:
        raise NodeUnchanged(f"{path}: {unreadable.strerror}", "name a map of the compute element with --map"
                            ) from unreadable
    if len(data) > _LARGEST:
        raise NodeUnchanged(f"{path}: more than {_LARGEST // 2**20} MiB", "this is no map of users")
    return data.decode(errors="replace")


# ---------------------------------------------------------------- doing it


def apply(tree: Tree, wanted: Plan, again: Callable[[], Plan]) -> list[str]:
    """Does what ``wanted`` says, or nothing where ``again``, the plan made again under the lock, is another. Returns
    what could not be done and is left to the admin. Raises NodeUnchanged."""
    if not may(tree):
        raise NodeUnchanged("only root can change this node", "run it with sudo; --dry-run shows what it would do")
    with tree.lock():
        if again() != wanted:
            raise NodeUnchanged("somebody changed this node meanwhile", "run it again")
        notes = [said for act in actions(tree, wanted) if (said := act())]
    return notes + told_udev(tree, wanted)


def may(tree: Tree) -> bool:
    """May we change it at all?"""
    return not tree.real or os.geteuid() == 0


def recorded(tree: Tree, wanted: Plan) -> bool:
    """Does the record say all that ``wanted`` is to leave there?"""
    return wanted.record is not None and tree.read(record.RECORD) == record.dump(wanted.record)


def hints(tree: Tree, wanted: Plan) -> list[str]:
    """What an admin should know of a change before it is made, and what is left to her."""
    if wanted.record is None:
        return _left(tree, wanted)
    if wanted.empty:
        return []
    said = []
    if tree.real and udev.KVM.exists() and udev.owner()[1] & 0o006:
        said.append(f"{udev.KVM} was open to everybody: now to members of {wanted.record.group} alone")
    if any(change.path == snippets.CONDOR_FILE for change in wanted.files):
        said += [f"{snippets.CONDOR / name} sets STARTER_JOB_ENVIRONMENT, and {snippets.CONDOR_FILE.name} replaces it: "
                 "put both into one" for name in tree.names(snippets.CONDOR) if name != snippets.CONDOR_FILE.name
                 and re.search(r"^\s*STARTER_JOB_ENVIRONMENT\s*=", tree.read(snippets.CONDOR / name) or "", re.M)]
        hook = "" if _packaged(tree) else "vmjob site hook /etc/vmjob && "
        said.append(f"for HTCondor: {hook}condor_reconfig")
    if tree.mode(snippets.SLURM) is not None:
        import socket

        said += ["for Slurm, by hand:", *(f"  {line}" for line in lines(snippets.slurm(socket.gethostname())))]
    if any(change.path == plan.GROUP for change in wanted.files):
        said.append("who is logged in, and daemons that run, see the group only again: restart condor or slurmd")
    return said


def _left(tree: Tree, wanted: Plan) -> list[str]:
    """After an undoing."""
    said = []
    if any(change.path == snippets.CONDOR_FILE for change in wanted.files):
        said.append("for HTCondor: condor_reconfig")
    there = [name for name in (snippets.HOOK, *snippets.BESIDE) if name in tree.names(snippets.ETC)]
    return said + ([f"{snippets.ETC} keeps what vmjob site hook wrote: {', '.join(there)}; vmjob site remove "
                    "undoes all of vmjob"] if there else [])


def actions(tree: Tree, wanted: Plan) -> list[Callable[[], Optional[str]]]:
    """Each step, in the order in which a crash between two of them leaves what a second run, or disable, puts right:
    the record is there before what it tells of, and goes after it."""
    tidy = [partial(tree.tidy, path) for path in (*_FILES, record.RECORD)]
    make = [partial(_make, tree, path, new, old is None) for path, old, new in wanted.folders if new is not None]
    files = [partial(_file, tree, change) for change in wanted.files]
    if wanted.record is None:
        gone = [path for path, _, new in wanted.folders if new is None]
        ours = (snippets.STATE, *plan.ABOVE)
        empty = [partial(_remove, tree, path) for path in gone if path not in ours]
        last = [partial(_remove, tree, path) for path in gone if path in ours]
        return [*tidy, *make, *files, partial(_discard, tree), *empty, partial(tree.remove, record.RECORD), *last]
    text = record.dump(wanted.record)
    steps: list[Callable[[], Optional[str]]] = [*tidy]
    steps += [one for one in make if one.args[1] in plan.ABOVE]
    if tree.mode(snippets.STATE) is None:
        steps.append(partial(_begin, tree, text))
    elif tree.read(record.RECORD) != text:
        steps.append(partial(tree.write, record.RECORD, text, 0o600))
    return [*steps, *(one for one in make if one.args[1] not in (snippets.STATE, *plan.ABOVE)), *files]


def _begin(tree: Tree, text: str) -> None:
    """The folder appears with the record in it, which says that it is ours."""
    _discard(tree)
    tree.make_folder(BEGUN, 0o755)
    tree.write(BEGUN / record.RECORD.name, text, 0o600)
    tree.rename(BEGUN, snippets.STATE)


def _discard(tree: Tree) -> None:
    """What was begun and killed."""
    tree.tidy(BEGUN / record.RECORD.name)
    tree.remove(BEGUN / record.RECORD.name)
    tree.remove_folder(BEGUN)


def _make(tree: Tree, path: PurePosixPath, mode: int, fresh: bool) -> None:
    """The folder of runs is the daemon's, whose hook removes what others leave there."""
    tree.make_folder(path, mode, _number(tree, DAEMON) if fresh and path == snippets.RUNS else None)


def _remove(tree: Tree, path: PurePosixPath) -> Optional[str]:
    return None if tree.remove_folder(path) else f"{path} stays: there are files in it that enable-kvm did not make"


def _file(tree: Tree, change: Change) -> None:
    if change.new is None:
        tree.remove(change.path)
    else:
        tree.write(change.path, change.new, 0o644)


def told_udev(tree: Tree, wanted: Optional[Plan]) -> list[str]:
    """The device as the rules have it, now, where these were changed. What to do where udev does not do it."""
    if not tree.real or not wanted or all(change.path != snippets.RULE_FILE for change in wanted.files):
        return []
    udevadm = process.which("udevadm")
    if udevadm:
        process.run([udevadm, "control", "--reload"], check=False, timeout=30)
        process.run([udevadm, "trigger", "--action=change", "--subsystem-match=misc", "--sysname-match=kvm"],
                    check=False, timeout=30)
        process.run([udevadm, "settle", "--timeout=10"], check=False, timeout=30)
    rule = udev.for_kvm(udev.files())
    differs = udev.differs(rule) if rule else ""
    return [f"{differs}: until the next boot, chgrp {rule.group} {udev.KVM} && chmod {rule.mode:04o} {udev.KVM}"
            ] if rule and differs else []
