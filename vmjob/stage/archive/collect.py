"""Which files travel into the guest, and under which names. Reads folders, no contents."""

from __future__ import annotations

import glob
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.core.errors import InputMissing, JobError
from vmjob.core.model import Input

OURS = ".vmjob"  # names of our own locks and unfinished folders begin so: they never travel
_HINT = "check the path; it is relative to the job file's folder"


@dataclass(frozen=True)
class Entry:
    """One member: its name in the archive, where its bytes are, and its state when it was looked at.
    ``link`` is set for a symbolic link that travels as a link."""

    name: str
    path: Path
    state: os.stat_result
    link: Optional[str] = None


def collect(inputs: tuple[Input, ...], base: Path, leave_out: Path) -> list[Entry]:
    """All entries, sorted by name, folders before what they hold. ``leave_out``: the archive being made.

    Symbolic links: an input that is one itself is followed. Inside a folder a relative link that stays in that
    folder travels as a link; any other is replaced by what it leads to.
    Raises InputMissing or JobError naming the key in the job.
    """
    found: dict[str, Entry] = {}
    stale = leave_out.stat() if leave_out.exists() else None
    for number, one in enumerate(inputs):
        key = f"inputs[{number}]"
        for path, name in _sources(one, base, key):
            for entry in _walk(path, name, key):
                if stale and os.path.samestat(entry.state, stale):
                    continue
                other = found.setdefault(entry.name, entry)
                both_folders = stat.S_ISDIR(entry.state.st_mode) and stat.S_ISDIR(other.state.st_mode)
                if other.path != entry.path and not both_folders:
                    raise JobError(f"{key}: {entry.path} and {other.path} would both be {entry.name!r} in the guest",
                                   "give one of them another name with 'to'")
    found.pop("", None)
    return [found[name] for name in sorted(found, key=lambda name: name.split("/"))]


def _sources(one: Input, base: Path, key: str) -> list[tuple[Path, str]]:
    """The files and folders an input names, each with its name in the guest's work folder."""
    target = posixpath.normpath(one.target) if one.target else ""
    if target.startswith(("/", "..")):
        raise JobError(f"{key}.to: {one.target!r} must stay below the work folder", "write a relative path")
    source = Path(one.source).expanduser()
    path = base / source
    if path.exists() or path.is_symlink() or not glob.has_magic(str(source)):
        own = path.name if path.name not in ("", "..") else path.resolve().name
        name = posixpath.join(target, own) if one.target.endswith("/") else target or own
        whole = name == "." or (not target and one.source in (".", "./"))  # its contents, without a folder around them
        return [(path, "" if whole else name)]
    # names are kept from the first part with a wildcard on: data/*/x.txt brings a/x.txt and b/x.txt
    wild = next(n for n, part in enumerate(source.parts) if glob.has_magic(part))
    fixed = base.joinpath(*source.parts[:wild])
    # not Path.glob: it takes hidden files for **, and no absolute patterns
    pattern = "/".join((glob.escape(os.fspath(fixed)), *source.parts[wild:]))
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not matches:
        raise InputMissing(f"{key}: nothing fits {one.source!r} in {base}", _HINT)
    found = [(match, posixpath.normpath(posixpath.join(target, match.relative_to(fixed)))) for match in matches]
    return [(match, "" if name == "." else name) for match, name in found]


def _walk(path: Path, name: str, key: str) -> Iterator[Entry]:
    try:
        state = path.stat()
    except FileNotFoundError as missing:
        what = "leads nowhere" if path.is_symlink() else "no such file or folder"
        raise InputMissing(f"{key}: {path}: {what}", _HINT) from missing
    except OSError as refused:
        raise InputMissing(f"{key}: {path}: {refused.strerror}", "check who may read it, and its links") from refused
    yield Entry(name, path, state)
    if stat.S_ISDIR(state.st_mode):
        yield from _inside(path, name, key, path.resolve(), {(state.st_dev, state.st_ino)})
    elif not stat.S_ISREG(state.st_mode):
        raise JobError(f"{key}: {path} is neither a file nor a folder", "name a file, a folder or a glob")


def _inside(folder: Path, name: str, key: str, top: Path, above: set[tuple[int, int]]) -> Iterator[Entry]:
    """The contents of a folder, links decided; ``above``: the folders we are in, so that no link leads in circles."""
    try:
        children = sorted(folder.iterdir())
    except OSError as refused:
        raise InputMissing(f"{key}: {folder}: {refused.strerror}", "check who may read it") from refused
    for child in children:
        if child.name.startswith(OURS):
            continue
        member = posixpath.join(name, child.name)
        if child.is_symlink() and _stays(child, top):
            yield Entry(member, child, child.lstat(), os.fspath(child.readlink()))
            continue
        try:
            state = child.stat()
        except OSError as refused:
            raise InputMissing(f"{key}: {child}: {refused.strerror}", "remove the link or fix it") from refused
        if stat.S_ISDIR(state.st_mode):
            here = (state.st_dev, state.st_ino)
            if here in above:
                raise JobError(f"{key}: {child} leads back to a folder it is in", "remove this link")
            yield Entry(member, child, state)
            yield from _inside(child, member, key, top, above | {here})
        elif stat.S_ISREG(state.st_mode):
            yield Entry(member, child, state)
        else:
            raise JobError(f"{key}: {child} is neither a file nor a folder", "remove it, or name files one by one")


def _stays(link: Path, top: Path) -> bool:
    """Does a relative link lead to something below ``top``, however it is read?"""
    text = os.fspath(link.readlink())
    if text.startswith("/"):
        return False
    lands = Path(os.path.normpath(link.parent.resolve() / text))
    return all(place == top or top in place.parents for place in (lands, link.resolve()))
