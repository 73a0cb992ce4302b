"""The runs of this node, in a folder that all users write to: what the startd's hook knows of them.

``/var/lib/vmjob/runs`` (mode 1777; VMJOB_RUNS names another; where there is none, nothing is registered)::

    run-UID-RANDOM     a run: its lock is held while it lives, however it ends; what the node did to it stays in it
    image-UID-HEX      that user's cache on this node has the image; its mtime is the last use

Whoever looks trusts the kernel alone: whose a file is, when it was written, and whether its lock is held. The lock is a
record lock of the open file, not flock: to hold one a process must be able to write the file, so nobody makes another's
run seem alive. What stands in a file is its owner's word, bounded, and concerns that user's runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from vmjob.core import classads
from vmjob.core.accounts import user_name
from vmjob.core.errors import (
    BootFailed,
    CommandMissing,
    KvmUnavailable,
    NetworkRefused,
    QemuFailed,
    QemuMissing,
    VmjobError,
)
from vmjob.core.node_errors import NodeFailed

log = logging.getLogger("vmjob.run")

RUNS = Path("/var/lib/vmjob/runs")
# What another node may do better. A guest's own failures, outputs, walltime and signals are the job's.
FAULTS = (QemuMissing, KvmUnavailable, NetworkRefused, QemuFailed, CommandMissing, BootFailed, NodeFailed)
HOUR = 3600.0  # seconds for which a failure counts
_IMAGE_KEPT = 24 * HOUR
_UNLOCKED = 60.0  # seconds after which a file without a lock or an outcome is a killed run's
_MOST = 5000  # files looked at
_MOST_OWN = 50  # failures, and images, that one user leaves there
_SIZE = 4096  # bytes of a file that are read
_NAME = re.compile(r"(?:run-(?P<run>[0-9]{1,10})-[0-9a-f]{16}|image-(?P<image>[0-9]{1,10})-(?P<hex>[0-9a-f]{64}))\Z")
# struct flock where its lengths have 64 bits: type, whence, start, length, pid
_LOCK = "hhqqi"


@dataclass(frozen=True)
class Failed:
    """A run that failed, by the node's fault as it seems. ``image``: digest; ``ended``: seconds since 1970."""

    user: str
    kind: str
    message: str
    image: str
    ended: float


@dataclass(frozen=True)
class Seen:
    """What is in the folder. ``running``: guests now; ``images``: digests in caches of this node, latest used first.
    ``problem``: why this is not all, empty: it is."""

    running: int = 0
    failed: tuple[Failed, ...] = ()
    images: tuple[str, ...] = ()
    problem: str = ""


def folder() -> Path:
    """Where runs are registered (perhaps not there)."""
    named = os.environ.get("VMJOB_RUNS", "")
    return Path(named) if named.startswith("/") else RUNS


# ---------------------------------------------------------------- a run's side


@contextmanager
def registered(image: str, cache: Path) -> Iterator[None]:
    """The run of this process with the image of this digest, for as long as the with block lasts; ``cache`` is where
    the image is kept. A failure that is the node's leaves it there. Never raises of its own: a folder that cannot be
    written costs the node's admin knowledge, and no job."""
    handle, path = -1, Path()
    try:
        place = folder()
        _sweep(place, os.getuid())
        handle, path = _enter(place, {"user": user_name(os.getuid()), "image": image, "started": round(time.time())})
        node = os.environ.get("VMJOB_NODE_CACHE", "")
        if node and Path(node) in cache.parents:  # it outlives the job
            _touch(place / f"image-{os.getuid()}-{image.rpartition(':')[2]}")
    except OSError as refused:
        log.info("%s: the run is not registered: %s", refused.filename or folder(), refused.strerror)
    left = False
    try:
        yield
    except FAULTS as fault:
        left = handle >= 0 and _tell(handle, image, fault)
        raise
    finally:
        if handle >= 0:
            if not left:
                with suppress(OSError):
                    path.unlink()
            os.close(handle)


def _enter(place: Path, body: dict[str, Any]) -> tuple[int, Path]:
    path = place / f"run-{os.getuid()}-{secrets.token_hex(8)}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        os.fchmod(handle, 0o644)  # whatever the umask
        os.pwrite(handle, json.dumps(body).encode(), 0)
    except OSError:
        os.close(handle)
        path.unlink()
        raise
    return handle, path


def _tell(handle: int, image: str, fault: VmjobError) -> bool:
    """Leave the failure behind."""
    body = {"user": user_name(os.getuid()), "image": image, "failure": fault.kind, "message": fault.message[:500]}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(body).encode()[:_SIZE], 0)
    except OSError:
        return False
    return True


def _touch(path: Path) -> None:
    # its name is known to all: a pipe there must not hold us, and a neighbour's file is none of ours
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or is no file", str(path))
        os.utime(handle)
    finally:
        os.close(handle)


def _sweep(place: Path, uid: int) -> None:
    """Remove what is over of this user's, and the oldest of what is too much."""
    kept: dict[str, list[tuple[float, Path]]] = {}
    now = time.time()
    for entry, owner, _ in _entries(place)[0]:
        with suppress(OSError):
            if owner == uid and (found := entry.stat(follow_symlinks=False)).st_uid == uid:
                if _over(Path(entry.path), found, now):
                    Path(entry.path).unlink()
                elif not _alive(Path(entry.path)):
                    kept.setdefault(entry.name[:3], []).append((found.st_mtime, Path(entry.path)))
    for files in kept.values():
        for _, path in sorted(files, reverse=True)[_MOST_OWN:]:
            with suppress(OSError):
                path.unlink()


# ---------------------------------------------------------------- the hook's side


def survey(place: Path, now: float) -> Seen:
    """What the folder tells. Removes what is over, where it may: in a folder that belongs to whoever asks. Never
    raises. ``now``: seconds since 1970."""
    try:
        entries, more = _entries(place)
        ours = place.stat().st_uid == os.getuid()
    except OSError as refused:
        return Seen(problem=f"{place}: {refused.strerror}: runs and failures are not counted")
    running, failed = 0, []
    images: dict[str, float] = {}
    shares: Counter[tuple[int, bool]] = Counter()  # nobody takes all the room that others need
    for entry, owner, image in entries:
        with suppress(OSError):
            path, found = Path(entry.path), entry.stat(follow_symlinks=False)
            # a second name for another's file would make his failures two
            if not stat.S_ISREG(found.st_mode) or found.st_uid != owner or found.st_nlink != 1:
                continue
            shares[owner, bool(image)] += 1
            if shares[owner, bool(image)] > _MOST_OWN * 4:
                pass
            elif image:
                if not _over(path, found, now):
                    images[image] = max(found.st_mtime, images.get(image, 0.0))
            elif _alive(path):
                running += 1
            elif one := _failed(path, found, now):
                failed.append(one)
            if ours and _over(path, found, now):
                path.unlink()
    latest = sorted(images, key=lambda digest: -images[digest])
    return Seen(running, tuple(sorted(failed, key=lambda one: one.ended)), tuple(latest),
                f"{place} has more than {_MOST} files: not all runs are counted" if more else "")


def _entries(place: Path) -> tuple[list[tuple[os.DirEntry[str], int, str]], bool]:
    """(entry, the user whom its name tells, the digest of an image) of at most _MOST files; are there more?"""
    found: list[tuple[os.DirEntry[str], int, str]] = []
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST:
                return found, True
            if name := _NAME.match(entry.name):
                found.append((entry, int(name["run"] or name["image"]), f"sha256:{name['hex']}" if name["hex"] else ""))
    return found, False


def _over(path: Path, found: os.stat_result, now: float) -> bool:
    """Nobody needs this file any more."""
    age = now - found.st_mtime
    if path.name.startswith("image-"):
        return not -_UNLOCKED < age <= _IMAGE_KEPT  # nor one that is yet to come
    return age > _UNLOCKED and not _alive(path) and (age > HOUR or "failure" not in _read(path))


def _open(path: Path) -> int:
    """For reading; a pipe in its place keeps nobody waiting, and a link is not followed. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _alive(path: Path) -> bool:
    """Does a process hold the lock that only who can write the file may hold?"""
    if path.name.startswith("image-"):
        return False
    handle = _open(path)
    try:
        return held(handle)
    finally:
        os.close(handle)


def held(handle: int) -> bool:
    """Does a run hold the lock of this open file of its own? Raises OSError."""
    asked = struct.pack(_LOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    said: int = struct.unpack(_LOCK, fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked))[0]
    return said != fcntl.F_UNLCK


def _failed(path: Path, found: os.stat_result, now: float) -> Optional[Failed]:
    if not 0 <= now - found.st_mtime < HOUR:  # nor what says that it is yet to come
        return None
    body = _read(path)
    kind = str(body.get("failure"))
    if kind not in [fault.__name__ for fault in FAULTS]:
        return None
    image = str(body.get("image"))[:71]
    return Failed(user_name(found.st_uid), kind, classads.line(str(body.get("message"))[:300]),
                  image if re.fullmatch(r"sha256:[0-9a-f]{64}", image) else "", found.st_mtime)


def _read(path: Path) -> dict[str, Any]:
    """What a file says; nothing where that is nonsense. Raises OSError."""
    handle = _open(path)
    try:
        body = json.loads(os.read(handle, _SIZE)) if stat.S_ISREG(os.fstat(handle).st_mode) else {}
    except (ValueError, RecursionError):
        body = {}
    finally:
        os.close(handle)
    return body if isinstance(body, dict) else {}
