"""Unpacks what a hostile guest wrote on its output disk, into the user's folder and nowhere else.

All goes into a hidden folder first, where nobody but us writes: so a parent folder that was no link a moment
ago is none now. Only a whole, clean archive is moved into place, all of it or nothing; of a refused one nothing stays.

Links: a relative symbolic link may climb with leading ``..`` only, as far as the output folder; then however
links are chained, they end in it. Others are refused, and so is every member that would be written through a link.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Callable, Optional

from vmjob import interrupt
from vmjob.errors import OutputRefused, OutputTooLarge, ScratchFull, SlotError
from vmjob.escapes import brief
from vmjob.files import FULL, Advance, copy_sparse, real_kind, remove_tree
from vmjob.ownnames import reserved
from vmjob.progress import Reporter
from vmjob.stage.tar import Member, read_members
from vmjob.stage.wanted import Wanted
from vmjob.units import format_size

log = logging.getLogger("vmjob.stage")

MAX_MEMBERS = 300_000
MAX_DEPTH = 100  # folders in folders: every one is looked at
MAX_NAMES = 32 * 2**20  # bytes of all names together: they are kept until the end
_OURS = ".vmjob"  # also the temporary names of what we write among the results
_HIDDEN = f"{_OURS}-unpack-"
_HINT = "the program must leave plain files, folders and links among its outputs"
_ASKED = "the guest, or whoever is root in it, brings what nobody asked for: see console.log, and do not trust it"
Check = Callable[[], None]


def _quiet() -> None:
    return None


def unpack_results(archive: Path, folder: Path, reporter: Reporter) -> tuple[str, ...]:
    """Unpack what ``slot-run --pack`` made on a node (result.json and console.log too) as unpack_outputs does: a site
    is no friend either."""
    return _unpack(archive, folder, _Unpacker(2**62, lambda _: True), reporter, _quiet)


def unpack_outputs(disk: Path, folder: Path, cap: int, reporter: Reporter, wanted: Optional[Wanted] = None,
                   check: Check = _quiet) -> tuple[str, ...]:
    """Unpack the archive at the start of the raw file ``disk`` into ``folder``; the files and links made, by name.

    ``cap``: bytes that all files together may have, holes counted. ``wanted``: what may come back (None: whatever has
    no reserved name); ``check`` is called again and again, and what it raises ends it. Owner: us; modes as the umask
    allows, without set-uid bits, never writable by all, always readable and writable by us; holes stay holes. Existing
    files are replaced atomically, links never followed. The caller has claimed ``folder`` (slot.scratch.claim).
    Raises OutputRefused naming the member, OutputTooLarge, ScratchFull, SlotError: then ``folder`` is as it was.
    """
    def may(parts: list[str]) -> bool:
        if parts and reserved(parts[0]):
            raise OutputRefused(f"{brief(parts[0])!r} is a name that vmjob or the batch system keeps for itself among "
                                "the results", "give this output another name")
        return wanted is None or wanted.take(parts)

    return _unpack(disk, folder, _Unpacker(cap, may), reporter, check)


def _unpack(disk: Path, folder: Path, unpacker: _Unpacker, reporter: Reporter, check: Check) -> tuple[str, ...]:
    try:
        for dead in folder.glob(f"{_HIDDEN}*"):  # of a run that was killed here
            remove_tree(dead)
        hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=folder))
        try:
            with disk.open("rb", buffering=0) as archive, reporter.bar("outputs", None) as bar:
                def advance(amount: float) -> None:
                    bar.advance(amount)
                    check()

                unpacker.begin(archive.fileno(), hidden / "new", advance)
                for member in read_members(archive.fileno(), os.fstat(archive.fileno()).st_size, check):
                    unpacker.add(member)
            check()  # what comes now is renamed in one go
            _move(hidden / "new", folder, hidden)
            return tuple(unpacker.names)
        finally:
            with interrupt.shielded():  # hundreds of thousands of files take longer than a step's patience
                remove_tree(hidden)
    except OSError as trouble:
        if trouble.errno in FULL:
            raise ScratchFull(f"{folder}: {trouble.strerror} while the outputs were unpacked",
                              "free some space there, or use another output folder") from trouble
        raise SlotError(f"{folder}: the outputs could not be unpacked: {trouble}",
                        "check that the output folder may be written") from trouble


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class _Unpacker:
    """Makes members below ``top``, which is ours alone. ``may``: may the member with these parts of its name come?"""

    archive: int
    top: Path
    advance: Advance

    def __init__(self, cap: int, may: Callable[[list[str]], bool]) -> None:
        self.cap, self.may = cap, may
        self.names: dict[str, None] = {}
        self.bytes = self.members = self.name_bytes = 0
        self._mask = _umask() | 0o002

    def begin(self, archive: int, top: Path, advance: Advance) -> None:
        self.archive, self.top, self.advance = archive, top, advance
        self._parent = top
        top.mkdir(mode=0o700)

    def add(self, member: Member) -> None:
        self.name_bytes += len(os.fsencode(member.name))
        self._one_more()
        parts = _parts(member)
        if not parts:
            if member.kind == "folder":
                self.may(parts)  # the work folder itself: for the pattern "."
                return
            raise OutputRefused(f"{member.name!r} is no name for a file", _HINT)
        if not self.may(parts):
            raise OutputRefused(f"{brief(member.name)}: no output pattern of the job matches this name", _ASKED)
        try:
            self._make(member, "/".join(parts), self._folder(member, parts))
        except FileExistsError as twice:
            raise OutputRefused(f"{brief(member.name)}: the output archive holds a folder of this name too",
                                _HINT) from twice
        except OSError as refused:
            if refused.errno in FULL:
                raise
            raise OutputRefused(f"{brief(member.name)}: cannot be made here: {refused.strerror}", _HINT) from refused

    def _one_more(self) -> None:
        self.members += 1
        if self.members > MAX_MEMBERS or self.name_bytes > MAX_NAMES:
            raise OutputRefused(f"the output archive has more than {MAX_MEMBERS} members, or names of more than "
                                f"{format_size(MAX_NAMES)}", "let the program pack its small files into one")

    def _make(self, member: Member, name: str, path: Path) -> None:
        if member.kind == "folder":
            self._mkdir(path, member)
            path.chmod(member.mode & ~self._mask | 0o700)
            return
        if member.kind == "hardlink" and name in self.names and _split(member.link) == name.split("/"):
            return  # GNU tar's way to say that it was asked for a file twice
        if self.names.pop(name, "new") is None:  # a later member replaces the earlier one, as tar does
            self.bytes -= path.lstat().st_size
            path.unlink()
        elif real_kind(path) is not None:
            raise FileExistsError
        if member.kind == "file":
            self._file(member, path)
        elif member.kind == "symlink":
            self._symlink(member, member.link, name, path)
        elif member.kind == "hardlink":
            self._hardlink(member, name, path)
        else:
            raise OutputRefused(f"{brief(member.name)} is a {member.kind}", _HINT)
        self.names[name] = None

    def _folder(self, member: Member, parts: list[str]) -> Path:
        """The member's path, its parents made; none of them is a link."""
        parent = self.top.joinpath(*parts[:-1])
        if parent != self._parent:
            here = self.top
            for part in parts[:-1]:
                here = here / part
                self._mkdir(here, member)
            self._parent = parent
        return parent / parts[-1]

    def _mkdir(self, path: Path, member: Member) -> None:
        kind = real_kind(path)
        if kind is None:
            self._one_more()  # a long name makes many folders
            path.mkdir()
            path.chmod(0o755 & ~self._mask | 0o700)  # also no set-gid bit of the folder above
        elif kind != "folder":
            raise OutputRefused(f"{brief(member.name)} would be written through a {kind}", _HINT)

    def _count(self, member: Member, size: int) -> None:
        self.bytes += size
        if self.bytes > self.cap:
            raise OutputTooLarge(f"{brief(member.name)}: the outputs unpack to more than {format_size(self.cap)}",
                                 "raise resources.disk, or ask for fewer outputs")

    def _file(self, member: Member, path: Path) -> None:
        self._count(member, member.size)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(target, member.size)
            for offset, start, length in member.pieces:
                if copy_sparse(self.archive, target, start, offset, length, self.advance) < length:
                    raise OutputRefused(f"{brief(member.name)}: the output archive ends before this member does", _HINT)
            os.fchmod(target, member.mode & ~self._mask | 0o600)
            os.utime(target, (member.mtime, member.mtime))
        finally:
            os.close(target)

    def _symlink(self, member: Member, goal: str, name: str, path: Path) -> None:
        steps = [step for step in goal.split("/") if step not in ("", ".")]
        climbs = next((n for n, step in enumerate(steps) if step != ".."), len(steps))
        if not goal or goal.startswith("/") or ".." in steps[climbs:] or climbs > name.count("/"):
            raise OutputRefused(f"{brief(member.name)} is a link to {brief(goal)!r}, out of the output folder", _HINT)
        path.symlink_to(goal)

    def _hardlink(self, member: Member, name: str, path: Path) -> None:
        parts = _split(member.link)
        goal = "/".join(parts or ())
        if parts is None or goal not in self.names:
            raise OutputRefused(f"{brief(member.name)} is a hard link to {brief(member.link)!r}, which is no output "
                                "before it", _HINT)
        origin = self.top.joinpath(*parts)
        if origin.is_symlink():  # at another depth it would lead elsewhere: judged anew
            self._symlink(member, os.fspath(origin.readlink()), name, path)
            return
        self._count(member, origin.stat().st_size)  # a copy of the outputs makes a file of each link
        os.link(origin, path, follow_symlinks=False)


def _split(name: str) -> Optional[list[str]]:
    """The parts of a name; None when it leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if name.startswith("/") or ".." in parts else parts


def _parts(member: Member) -> list[str]:
    parts = _split(member.name)
    if parts is None:
        raise OutputRefused(f"{brief(member.name)!r} leads out of the output folder", _HINT)
    if len(parts) > MAX_DEPTH:
        raise OutputRefused(f"{member.name[:100]}…: more than {MAX_DEPTH} folders in folders", _HINT)
    if parts and parts[0].startswith(_OURS):
        raise OutputRefused(f"{brief(parts[0])!r} is a name that vmjob keeps for itself among the results",
                            "give this output another name")
    return parts


def _move(source: Path, folder: Path, hidden: Path) -> None:
    """Move the unpacked tree ``source`` in, all or nothing. What would be in the way is found before anything moves;
    what is replaced waits in ``hidden`` until all is done."""
    moves = _moves(source, folder)
    old, done = hidden / "old", list[tuple[Path, Path]]()
    old.mkdir()
    try:
        for number, (path, goal) in enumerate(moves):
            for come, go in ((goal, old / str(number)), (path, goal)):
                if come is path or real_kind(goal) is not None:
                    come.rename(go)  # a link is moved, not followed
                    done.append((go, come))
    except BaseException:  # a signal too
        for path, goal in reversed(done):
            with suppress(OSError):
                path.rename(goal)
        raise


def _moves(top: Path, folder: Path) -> list[tuple[Path, Path]]:
    moves: list[tuple[Path, Path]] = []
    stack = [(top, folder)]
    while stack:
        source, target = stack.pop()
        with os.scandir(source) as entries:
            for entry in entries:
                path, goal = Path(entry.path), target / entry.name
                there = real_kind(goal)
                if there == "folder" and entry.is_dir(follow_symlinks=False):
                    stack.append((path, goal))
                elif there == "folder":
                    raise OutputRefused(f"{brief(str(goal))} is a folder, and the job brings a file of this name",
                                        "remove the folder, or use another output folder")
                else:
                    moves.append((path, goal))
    return moves
