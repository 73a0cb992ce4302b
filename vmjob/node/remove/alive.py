"""Which runs live on a node, by the locks that they hold. Nothing is changed, and nothing that was seen is believed but
the kernel's word: whose a file is, and whether it is locked."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Optional

from vmjob.core import locks
from vmjob.core.accounts import user_name
from vmjob.core.machinetext import is_number
from vmjob.node import snippets
from vmjob.node.tree import Tree
from vmjob.node.wipe import FOLDER, names
from vmjob.slot import register

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RUN = re.compile(r"run-([0-9]{1,10})-[0-9a-f]{16}\Z")
_CACHE = re.compile(r"uid-([0-9]{1,10})\Z")
RUN_FOLDER = re.compile(r"vmjob-run-[A-Za-z0-9_]{1,32}\Z")  # of a run, where its QEMU works
SCRATCH = PurePosixPath("/var/tmp")  # of runs that no batch system gave one
_RECORD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def guests(tree: Tree, spool: Optional[PurePosixPath] = None) -> list[str]:
    """Runs that live, each in words. ``spool``: usage records of runs that live count, too."""
    found = [*_registered(tree), *_using(tree), *_working(tree), *(_recording(tree, spool) if spool else ()),
             *(_processes() if tree.real else ())]
    return list(dict.fromkeys(found))


def _registered(tree: Tree) -> Iterator[str]:
    with tree.folder(snippets.RUNS) as place:
        for name in _names(place):
            match = _RUN.match(name)
            if match and _locked(place, name, int(match[1]), record_lock=True):
                yield f"{snippets.RUNS / name} of {user_name(int(match[1]), 'the user ')}"


def _using(tree: Tree) -> Iterator[str]:
    """A run holds the files of its image in its user's cache."""
    with tree.folder(snippets.CACHE) as place:
        for name in _names(place):
            match = _CACHE.match(name)
            if match:
                with _inside(place, name, "uses") as uses:
                    if any(_locked(uses, one, int(match[1])) for one in _names(uses)):
                        who = user_name(int(match[1]), "the user ")
                        yield f"{snippets.CACHE / name}, whose images are in use, of {who}"


def _recording(tree: Tree, spool: PurePosixPath) -> Iterator[str]:
    with tree.folder(spool / "open") as place:
        for name in _names(place):
            if _RECORD.match(name):
                with _inside(place, name) as run:
                    if run is not None and _locked(run, "state", None):
                        yield f"{spool / 'open' / name}, a usage record that is being written"


def _working(tree: Tree) -> Iterator[str]:
    with tree.folder(SCRATCH) as place:
        for name in _names(place):
            if RUN_FOLDER.match(name):
                with _inside(place, name) as run:
                    if run is not None and _locked(run, ".lock", os.fstat(run).st_uid):
                        yield f"{SCRATCH / name} of {user_name(os.fstat(run).st_uid, 'the user ')}"


def _processes() -> Iterator[str]:
    """QEMUs whose working folder is a run's: also those that are registered nowhere."""
    for entry in Path("/proc").iterdir():
        if is_number(entry.name):
            with suppress(OSError):
                place = str((entry / "cwd").readlink())
                command = (entry / "cmdline").read_bytes().split(b"\0")[0]
                if RUN_FOLDER.match(place.rpartition("/")[2]) and b"qemu" in command.rpartition(b"/")[2]:
                    yield f"process {entry.name}, QEMU of {user_name(entry.stat().st_uid, 'the user ')} in {place}"


def _names(place: Optional[int]) -> list[str]:
    return [] if place is None else names(place)


@contextmanager
def _inside(place: Optional[int], *parts: str) -> Iterator[Optional[int]]:
    """The open folder of these names below ``place``; None where there is none."""
    here = os.dup(place) if place is not None else -1
    try:
        for part in parts:
            try:
                deeper = os.open(part, FOLDER, dir_fd=here)
            except OSError:
                yield None
                return
            os.close(here)
            here = deeper
        yield here if here >= 0 else None
    finally:
        if here >= 0:
            os.close(here)


def _locked(place: Optional[int], name: str, owner: Optional[int], record_lock: bool = False) -> bool:
    """Does somebody hold the lock of this file? One of another ``owner`` says nothing."""
    try:
        handle = os.open(name, _READ, dir_fd=place)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or owner not in (None, found.st_uid):
            return False
        if record_lock:
            return register.held(handle)
        return not locks.attempt(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
