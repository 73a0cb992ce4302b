"""Where a rendering goes: whole or not at all, and what was good is kept until it has expired."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.core.errors import JobError
from vmjob.core.files import remove_tree, sync, write_whole

MARK = ".vmjob-publish"  # in a folder that is ours to replace
_AT_FDCWD, _EXCHANGE = -100, 2  # of renameat2(2)


@dataclass(frozen=True)
class Kept:
    """A rendering that was good: times in seconds since 1970."""

    text: str
    created: float
    expires: float


def write(path: Path, text: str) -> None:
    """Into a file that all may read, by renaming: whoever reads sees the old one or the new one, also after a power
    cut. Raises JobError where something else is there, OSError."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise JobError(f"--out {path}: is no file", "name a file, or leave --out away and redirect stdout")
    with _named(path):
        write_whole(path, text, mode=0o644, durable=True)


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Make ``folder`` hold exactly these files (by path in it), by exchanging it for a new one; scripts are executable.
    Only a folder that this function made, or that is empty, is replaced. Raises JobError, OSError."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).exists() or not any(folder.iterdir()))):
        raise JobError(f"--out {folder}: is no folder of vmjob-publish's: what is in it would be lost",
                       "name a folder that is not there yet, or an empty one")
    with _named(folder):
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name[:200]}.", dir=folder.parent))
    try:
        new.chmod(0o755)
        for name, text in {**files, MARK: "vmjob-publish replaces this folder as a whole\n"}.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _fill(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), text,
                  0o755 if text.startswith("#!") else 0o644)
        if folder.exists():
            _exchange(new, folder)
        else:
            new.rename(folder)
    finally:
        with contextlib.suppress(OSError):
            remove_tree(new)
    sync(folder.parent)


def keep(folder: Path, rendering: str, good: Kept) -> None:
    """For when nothing better can be had. Raises OSError."""
    head = json.dumps({"created": good.created, "expires": good.expires})
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / rendering, f"{head}\n{good.text}")


def kept(folder: Path, rendering: str, now: float) -> Optional[Kept]:
    """What was good at last, if it still counts at ``now`` (seconds since 1970)."""
    try:
        head, _, text = (folder / rendering).read_text(encoding="utf-8").partition("\n")
        told = json.loads(head)
        good = Kept(text, float(told["created"]), float(told["expires"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # there is a failure already: the one to report
        return None
    return good if good.created - 300 <= now < good.expires else None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Failures name the folder, not a temporary file in it."""
    try:
        yield
    except FileNotFoundError as missing:
        raise JobError(f"{path}: there is no folder {path.parent}", f"make it first: mkdir -p {path.parent}"
                       ) from missing
    except OSError as failed:
        raise OSError(failed.errno, failed.strerror, str(path.parent)) from failed


def _fill(number: int, text: str, mode: int) -> None:
    with open(number, "w", encoding="utf-8", newline="") as stream:
        os.fchmod(number, mode)
        stream.write(text)
        stream.flush()
        os.fsync(number)


def _exchange(one: Path, other: Path) -> None:
    """Each gets the other's name at one instant. Where the file system cannot, one after the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # no such call in this C library
        if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
            return
    aside = other.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)

