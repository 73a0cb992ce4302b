"""Where usage records are made and handed over: each run's exactly once, whatever instant it is killed at.

A spool is three folders on one file system: ``open`` (runs that go on), ``outgoing`` (records for the site's sender,
which takes them away) and ``ledger`` (all of them as JSON, for ``vmjob account report``). A run begins with a folder
of its own, open/UUID: in it

    state         what is known of the run, locked (flock) for as long as it lives
    beat          what has changed since, rewritten in place
    record, page  room for the record and for its page of the ledger, allocated: no end fails for want of space

and ends in five steps, each of which can be the last: (1) fill record and page, (2) page → ledger/UUID.json, (3)
record → out.EXT beside it, from where on what it says is settled, (4) remove state, (5) out → outgoing/UUID.EXT.
``sweep`` goes on for the dead: where nobody locks the state, from (4) if there is an out, else from (1) with what the
last beat said; where only an out is left, from (5). An out is made only while there is a state, under its lock, and
leaves by one rename. So no record goes out twice, and none is lost.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from vmjob.accounting.record import FORMATS, KILLED, UsageRecord, changes, from_json, render, to_json
from vmjob.core import locks
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.files import real_kind
from vmjob.core.site_errors import RecordSpoolFull

log = logging.getLogger("vmjob.accounting")

OPEN, OUTGOING, LEDGER = FOLDERS = ("open", "outgoing", "ledger")
ROOM = 32 * 1024  # bytes: more than any record takes
_BEAT = 4096  # of one page, so that a beat is there whole or not at all
_UNBORN_AGE = 600  # seconds after which a folder that has no name yet is a dead run's
_NAME = re.compile(r"(\.?)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z")
_FILES = ("beat", "record", "page", "state")


class Entry:
    """The record of one run that goes on, or went on until it was killed. ``lock``: the open state."""

    def __init__(self, spool: Path, folder: Path, record: UsageRecord, kind: str, lock: int) -> None:
        self.spool, self.folder, self.record, self.kind, self.lock = spool, folder, record, kind, lock
        self.out = folder / f"out{FORMATS[kind]}"

    def beat(self, now: UsageRecord) -> None:
        """Say that the run lives, and what it has used so far. Raises OSError."""
        _fill(self.folder / "beat", changes(self.record, now, _BEAT - 1).ljust(_BEAT - 1) + b"\n", settle=False)

    def end(self, last: UsageRecord) -> None:
        """Hand over the record. Raises OSError; what was not done then, a sweep does."""
        _fill(self.folder / "record", render(last, self.kind))
        _fill(self.folder / "page", render(last, "json"))
        _move(self.folder / "page", self.spool / LEDGER / f"{last.uuid}.json")
        (self.folder / "record").rename(self.out)
        self.deliver()

    def deliver(self) -> None:
        """The last two steps. Twice, or by two at once, is fine."""
        (self.folder / "state").unlink(missing_ok=True)
        _deliver(self.spool, self.folder)

    def close(self) -> None:
        os.close(self.lock)


def begin(spool: Path, record: UsageRecord, kind: str) -> Entry:
    """Begin a record, with room for its end; the caller ends and closes it. Raises RecordSpoolFull."""
    unborn, folder, lock = spool / OPEN / f".{record.uuid}", spool / OPEN / record.uuid, -1
    mask = os.umask(0o077)  # who can read a state could lock it
    try:
        if len({(spool / name).stat().st_dev for name in FOLDERS}) > 1:
            raise RecordSpoolFull(f"{spool}: {', '.join(FOLDERS)} are on several file systems",
                                  "they must be on one, as records are renamed from one to the other")
        unborn.mkdir(0o700)  # its group is that of open, if that has the setgid bit: the records have it then
        lock = os.open(unborn / "state", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        locks.attempt(lock)
        _write(lock, json.dumps({"format": kind, "record": to_json(record)}).encode())
        for name, room in (("record", ROOM), ("page", ROOM), ("beat", _BEAT)):
            _reserve(unborn / name, room)
        unborn.rename(folder)
        return Entry(spool, folder, record, kind, lock)
    except OSError as refused:
        if lock >= 0:
            os.close(lock)
        _remove(unborn)
        raise RecordSpoolFull(f"{spool}: no usage record can be begun there: {refused.strerror or refused}",
                              "the site's admin makes room (does the sender run?) and the folders writable; "
                              "another node may do") from refused
    finally:
        os.umask(mask)


# ---------------------------------------------------------------- what the dead left


@dataclass(frozen=True)
class Swept:
    """``delivered``: records that went to outgoing; ``stuck``: what cannot, and why; ``alive``: runs that go on."""

    delivered: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    alive: int = 0


def sweep(spool: Path, dry: bool = False) -> Swept:
    """Bring out the records of dead runs of whoever we are; others' are not touched. ``dry``: only say which. Never
    raises OSError."""
    delivered, stuck, alive = [], [], 0
    for name, born in _runs(spool):
        try:
            went = _carry_on(spool, name, dry) if born else _unborn(spool, name, dry)
        except FileNotFoundError:  # it went on meanwhile
            continue
        except Exception as wrong:  # a stranger's words, perhaps: they must not keep others' records in
            stuck.append(f"{spool}/{OPEN}/{name}: {wrong}")
            continue
        alive += went is None
        if went:
            delivered.append(name)
            log.info("the usage record %s of a run that was killed %s", name, "would go out" if dry else "went out")
    for one in stuck:
        log.warning("a usage record is stuck: %s", one)
    return Swept(tuple(delivered), tuple(stuck), alive)


def owners(spool: Path) -> list[int]:
    """Uids whose runs are open. Root sweeps as each of them, so what lies there leads nobody astray. Raises OSError."""
    return sorted({path.lstat().st_uid for path in (spool / OPEN).iterdir() if _NAME.match(path.name)})


def _runs(spool: Path) -> list[tuple[str, bool]]:
    """The runs that are open, and whether they have begun."""
    try:
        names = [path.name for path in (spool / OPEN).iterdir()]
    except OSError:
        return []
    return sorted((known.group(2), not known.group(1)) for known in map(_NAME.match, names) if known)


def _carry_on(spool: Path, uuid: str, dry: bool) -> Optional[bool]:
    """True: the record went out; False: there was nothing to do; None: the run lives."""
    folder = spool / OPEN / uuid
    if not _ours(folder):
        return False
    try:
        lock = os.open(folder / "state", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return any(map(real_kind, folder.glob("out.*"))) if dry else _deliver(spool, folder)
    try:
        if not locks.attempt(lock):
            return None
        if not os.fstat(lock).st_nlink:  # it ended between our open and our lock
            return False
        entry = _dead(spool, folder, uuid, lock)
        if dry:
            return True
        if real_kind(entry.out):
            entry.deliver()
        else:
            entry.end(_last_word(entry))
        return True
    finally:
        os.close(lock)


def _unborn(spool: Path, uuid: str, dry: bool) -> bool:
    """Remove the folder of a run that was killed before it had begun."""
    folder = spool / OPEN / f".{uuid}"
    if not dry and _ours(folder) and time.time() - folder.lstat().st_mtime > _UNBORN_AGE:
        _remove(folder)
    return False


def _ours(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return (found := folder.lstat()).st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode)
    return False


def _dead(spool: Path, folder: Path, uuid: str, lock: int) -> Entry:
    state = document(lock, "its state")
    if not isinstance(state.get("format"), str) or state["format"] not in FORMATS:
        raise JobError("its state: the format is not known")
    record = from_json(state.get("record"), "its state", JobError)
    if (record.uuid, record.uid) != (uuid, os.geteuid()):
        raise JobError("its state: it is of another run or user")
    return Entry(spool, folder, record, state["format"], lock)


def _last_word(entry: Entry) -> UsageRecord:
    """The record of a run that was killed: as of its last beat."""
    begun = to_json(entry.record)
    try:
        with reading(entry.folder / "beat") as handle:
            last = from_json({**begun, **document(handle, "beat")}, "beat", JobError)
    except (OSError, VmjobError) as lost:  # it never beat
        log.info("%s: what it used is not known: %s", entry.record.uuid, lost)
        last = replace(entry.record, wall=max(0.0, os.fstat(entry.lock).st_mtime - entry.record.started))
    return replace(last, uuid=entry.record.uuid, uid=entry.record.uid, outcome=KILLED, status=None)


def _deliver(spool: Path, folder: Path) -> bool:
    """The commit: what is settled goes out, and the folder goes. False where there was nothing, or another did it."""
    went = False
    for end in FORMATS.values():
        with suppress(FileNotFoundError):
            out = folder / f"out{end}"
            if not stat.S_ISREG(out.lstat().st_mode):
                raise JobError(f"{out.name}: it is no file")
            _move(out, spool / OUTGOING / f"{folder.name}{end}")
            went = True
    _remove(folder)
    return went


# ---------------------------------------------------------------- files


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A descriptor for reading that follows no link and waits for nobody."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def document(handle: int, where: str) -> Mapping[str, Any]:
    """The JSON object in an open file. Raises JobError."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > ROOM:
        raise JobError(f"{where}: it is no file of at most {ROOM} bytes")
    try:
        body = json.loads(os.pread(handle, ROOM, 0).decode(), parse_constant=int)  # NaN is no number
    except (ValueError, RecursionError) as broken:
        raise JobError(f"{where}: it is no JSON") from broken
    if not isinstance(body, dict):
        raise JobError(f"{where}: it is no JSON object")
    return body


def _reserve(path: Path, room: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, room)
    finally:
        os.close(handle)


def _fill(path: Path, data: bytes, settle: bool = True) -> None:
    """``data`` into a file that has room for it. ``settle``: that is all it holds, on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        _write(handle, data)
        if settle:
            os.ftruncate(handle, len(data))
            os.fchmod(handle, 0o640)  # the group is the accounting's
            os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], done)


def _move(source: Path, target: Path) -> None:
    """Rename. Where a neighbour took that name, in a folder that all write to, to one that he cannot guess."""
    try:
        source.rename(target)
    except (PermissionError, IsADirectoryError):
        source.rename(target.with_name(f"{target.stem}-{secrets.token_hex(4)}{target.suffix}"))


def _remove(folder: Path) -> None:
    """A run's folder, with what we put there."""
    for name in _FILES:
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()
