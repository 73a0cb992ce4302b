"""Can runs of this node begin usage records? Whoever reads may be root or the startd's user; the jobs' users are not
known here, so what is looked at is who may write. Nothing is changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmjob.accounting.spool import FOLDERS, LEDGER, OPEN, OUTGOING, ROOM
from vmjob.core.units import MIB, format_size

MODES = {OPEN: 0o3777, OUTGOING: 0o3733, LEDGER: 0o3733}  # as docs/site-admin.md has it
_BEGUN = 2 * ROOM + 8192  # bytes that a run takes when it begins
_LITTLE = 100 * MIB


@dataclass(frozen=True)
class Fault:
    """``fatal``: every job of this node would end with RecordSpoolFull."""

    fatal: bool
    text: str
    action: str


def faults(spool: Path) -> Iterator[Fault]:
    """What is wrong with a spool of usage records, the worst first. Never raises OSError."""
    found: dict[str, os.stat_result] = {}
    try:
        above = spool.stat()
        for name in FOLDERS:
            found[name] = (spool / name).lstat()
        space = os.statvfs(spool / OPEN)
    except (FileNotFoundError, NotADirectoryError):
        gone = next((path for path in (spool, *(spool / name for name in FOLDERS)) if not path.is_dir()), spool)
        yield Fault(True, f"{gone}: no such folder: no usage record can be begun, and every job fails", _make(spool))
        return
    except OSError as closed:
        yield Fault(True, f"{closed.filename or spool}: {closed.strerror}: no usage record can be begun",
                    f"chmod 0755 {spool}; if that is not it, its folders above")
        return
    yield from sorted([*_permissions(spool, above, found), *_room(spool, space)], key=lambda one: not one.fatal)


def _make(spool: Path) -> str:
    lines = [f"install -d -m 0755 {spool}", *(f"install -d -m {mode:04o} -g vmjob-acct {spool}/{name}"
                                              for name, mode in MODES.items())]
    return f"{' && '.join(lines)}  # docs/site-admin.md, Accounting: the group, whose {OUTGOING} is"


def _permissions(spool: Path, above: os.stat_result, found: dict[str, os.stat_result]) -> Iterator[Fault]:
    if _closed(above, 0o1):
        yield Fault(True, f"{spool} has mode {_mode(above):04o}: jobs do not come into it", f"chmod 0755 {spool}")
    for name, one in found.items():
        place, mode = spool / name, MODES[name]
        if not stat.S_ISDIR(one.st_mode):
            yield Fault(True, f"{place} is no folder: no usage record can be begun", f"move it away; {_make(spool)}")
        elif _closed(one, 0o3):
            yield Fault(True, f"{place} has mode {_mode(one):04o}: jobs cannot write there, and fail",
                        f"chmod {mode:04o} {place}")
        elif _mode(one) & mode != mode:
            yield Fault(False, f"{place} has mode {_mode(one):04o}, not {mode:04o}: not all users can write there, "
                        "they could take each other's records, or the accounting's group cannot read them",
                        f"chmod {mode:04o} {place}")
        elif one.st_uid and name != OUTGOING:
            yield Fault(False, f"{place} belongs to the user {one.st_uid}, who can take away others' records",
                        f"chown root {place}")
    if len({one.st_dev for one in found.values()}) > 1:
        yield Fault(True, f"{spool}: {', '.join(FOLDERS)} are on several file systems: no usage record can be begun",
                    "put them on one: records are renamed from one to the other")


def _closed(found: os.stat_result, bits: int) -> bool:
    """Is it for root alone? Else the owner's or group's jobs may do it, if not all."""
    mode = found.st_mode
    return not (mode & bits == bits or (found.st_gid and mode >> 3 & bits == bits)
                or (found.st_uid and mode >> 6 & bits == bits))


def _room(spool: Path, space: os.statvfs_result) -> Iterator[Fault]:
    free = space.f_bavail * space.f_frsize
    action = f"make room: does the sender empty {spool / OUTGOING}? Old pages of {spool / LEDGER} may go"
    if free < _BEGUN or (space.f_files and not space.f_favail):
        yield Fault(True, f"{spool} is full: no usage record can be begun, and every job fails", action)
    elif free < _LITTLE:
        yield Fault(False, f"{spool}: {format_size(free)} free: when it is full every job fails", action)


def _mode(found: os.stat_result) -> int:
    return stat.S_IMODE(found.st_mode)
