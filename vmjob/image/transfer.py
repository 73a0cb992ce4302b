"""Bytes on their way to a file: copied or received, and hashed as they pass."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from vmjob.errors import ImageCorrupt, ImageOutOfReach, ScratchFull, VmjobError
from vmjob.files import CHUNK, FULL, chunks, hash_file, reflink
from vmjob.image.stamps import identity, unchanged
from vmjob.model import Fetch, ImageFile
from vmjob.opened import Opened, hold
from vmjob.progress import Bar

ROOM = "make room there, or set VMJOB_CACHE to a larger disk"
STILL = "let nobody write to it, and fetch or build the image again"
_BATCH = 2**18  # bytes hashed while the next come; more falls out of the CPU's caches
_PATIENCE = 0.5  # seconds; what came over a slow link is written all the same, for whoever resumes
_ZEROS = bytes(CHUNK)


def expect(path: Path, found: tuple[str, int], sha256: str, size: int) -> None:
    """Raises ImageCorrupt naming ``path`` where digits and size ``found`` are others."""
    if found[1] != size:
        raise ImageCorrupt(f"{path}: {found[1]} bytes, but the manifest says {size} (sha256:{sha256})",
                           "the file is cut short or another one: fetch or build the image again")
    if found[0] != sha256:
        raise ImageCorrupt(f"{path}: expected sha256:{sha256}, found sha256:{found[0]}",
                           "the bytes changed on the way: fetch or build the image again")


def hash_expected(path: Path, sha256: str, size: int, bar: Optional[Bar] = None) -> tuple[int, ...]:
    """The identity of the file whose bytes are right; ``path`` should be that of an open one, or another may have the
    name in the end. Raises ImageCorrupt."""
    for _ in range(2):
        before = identity(path)
        expect(path, hash_file(path, bar), sha256, size)
        if unchanged(before, identity(path)):  # nobody wrote to it while we read
            return before
    raise ImageCorrupt(f"{path} changes while it is read", STILL)


def copy_file(source: Path, target: Path, bar: Optional[Bar] = None, *, durable: bool = False) -> tuple[str, int]:
    """Copy (blocks shared where the file system can, holes kept) and hash what was copied: digits and size."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as out, source.open("rb") as file:
        if reflink(file.fileno(), out.fileno()):
            found = hash_file(target, bar)
            os.fchmod(out.fileno(), 0o444)
            return found
        digest, size, zeros = hashlib.sha256(), 0, bytes(CHUNK)
        for chunk in chunks(source, bar):
            digest.update(chunk)
            if chunk != memoryview(zeros)[:len(chunk)]:
                _write(out.fileno(), chunk, size)
            size += len(chunk)
        out.truncate(size)
        os.fchmod(out.fileno(), 0o444)  # last: what a killed process leaves can be written by the next
        if durable:
            os.fsync(out.fileno())
    return digest.hexdigest(), size


def made(make: Callable[[Path], None], path: Path, stack: contextlib.ExitStack) -> Opened:
    """What ``make`` writes to ``path``, open until ``stack`` ends; or nothing is there. Raises what it raises."""
    path.unlink(missing_ok=True)
    try:
        make(path)
        path.chmod(0o444)
        return hold(path, stack)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def receive_file(file: ImageFile, fetch: Fetch, target: Path,
                 bar: Optional[Bar] = None) -> tuple[int, ...]:
    """Write what ``fetch`` brings to ``target``, hashed on the way; the identity of the file that was written. Of a
    part that is there already, which a process left that was killed, only the rest is fetched. Wrong bytes are fetched
    again, from the beginning: once, or as often as ``fetch`` has places to ask (its ``tries``, files asked for in all).

    After wrong bytes and on a full disk ``target`` is removed. Any other failure (a source that breaks, a deadline, a
    signal) leaves what has come, for the next. Raises ImageCorrupt after the last try (ImageOutOfReach where a place
    that was not reached, of which ``fetch`` has lines in ``unreached``, may have the right ones), ScratchFull, OSError
    where ``target`` cannot be written, or what ``fetch`` raises.
    """
    for left in reversed(range(getattr(fetch, "tries", 2))):
        told = _Told(bar)
        try:
            begun = _begun(file, target, told)
            _check_room(file, target, file.size - begun[1])
            found, written = _received(file, fetch, target, begun, told)
            if not left or found == (file.sha256, file.size):
                expect(Path(file.path), found, file.sha256, file.size)
                return written
        except ImageCorrupt as wrong:  # told by the source already, or found by us
            if not left:
                target.unlink(missing_ok=True)
                raise _given_up(file, fetch, wrong) from wrong
        except OSError as failure:
            if failure.errno not in FULL:
                raise
            target.unlink(missing_ok=True)  # the room is needed
            raise ScratchFull(f"{target.parent}: no space for {file.path}", ROOM) from failure
        target.unlink(missing_ok=True)
        told.back()
    raise AssertionError("the last try returns or raises")


def _given_up(file: ImageFile, fetch: Fetch, wrong: ImageCorrupt) -> VmjobError:
    unreached = getattr(fetch, "unreached", None)
    lines = unreached(file) if unreached else []
    if lines:
        return ImageOutOfReach("\n  ".join([f"{wrong.message}; and from others nothing came:", *lines]),
                               "later they may give it; who has other bytes must mend them")
    named = getattr(fetch, "wrong", None)
    places = ", ".join(named(file)) if named else ""
    hint = "mend the bytes there (those of submitted jobs: vmjob rm ID --images, and submit again)"
    return ImageCorrupt(wrong.message, f"{places or 'the place that it is fetched from'}: {hint}")


class _Told(Bar):
    """Passes on to another bar, and can take it back."""

    def __init__(self, bar: Optional[Bar]) -> None:
        self._bar, self._amount = bar or Bar(), 0.0

    def advance(self, amount: float) -> None:
        self._amount += amount
        self._bar.advance(amount)

    def back(self) -> None:
        self.advance(-self._amount)


def _begun(file: ImageFile, target: Path, bar: Bar) -> tuple[Any, int]:
    """What is there of it: the digest so far, and the bytes."""
    digest, size = hashlib.sha256(), 0
    try:
        found = target.lstat()
        # of more than one link: what a killed process was about to take in is somebody's own file
        if not stat.S_ISREG(found.st_mode) or found.st_size > file.size or found.st_nlink > 1:
            target.unlink()
            return digest, 0
        target.chmod(0o600)
    except FileNotFoundError:
        return digest, 0
    for chunk in chunks(target, bar):
        digest.update(chunk)
        size += len(chunk)
    return digest, size


def _check_room(file: ImageFile, target: Path, needed: int) -> None:
    """Told before it has travelled."""
    free = os.statvfs(target.parent)
    if free.f_bavail * free.f_frsize < needed:
        target.unlink(missing_ok=True)
        raise ScratchFull(f"{target.parent}: no space for {file.path} ({file.size} bytes)", ROOM)


def _received(file: ImageFile, fetch: Fetch, target: Path, begun: tuple[Any, int],
              bar: Bar) -> tuple[tuple[str, int], tuple[int, ...]]:
    """Digest and size of what was written, and the identity of its file."""
    digest, size = begun
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if size < file.size:
            with _Sink(out, digest, size) as sink:
                for piece in fetch(file, size):
                    sink.put(piece)
                    size += len(piece)
                    bar.advance(len(piece))
                    if size > file.size:
                        break
        os.fchmod(out, 0o444)
        return (digest.hexdigest(), size), identity(out)
    finally:
        os.close(out)


class _Sink:
    """Writes pieces in order, and hashes them in a thread beside its caller, at most a batch behind: whoever brings
    the bytes does not wait for that. On the way out all that was put is in the file."""

    def __init__(self, out: int, digest: Any, position: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._out, self._digest, self._position = out, digest, position
        self._hasher = ThreadPoolExecutor(1)
        self._hashing: Optional[Future[None]] = None
        self._batch: list[bytes] = []
        self._size, self._since = 0, time.monotonic()

    def put(self, piece: bytes) -> None:
        # kept until it is written: a view of a buffer that is filled anew would change under us
        self._batch.append(piece if isinstance(piece, bytes) else bytes(piece))
        self._size += len(piece)
        if self._size >= _BATCH or time.monotonic() - self._since > _PATIENCE:
            self._flush()

    def _flush(self) -> None:
        if self._hashing:
            self._hashing.result()
        self._hashing = self._hasher.submit(_hash_all, self._digest, self._batch)
        _write_all(self._out, self._batch, self._position)
        self._position += self._size
        self._batch, self._size, self._since = [], 0, time.monotonic()

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        try:
            # not after a failed write; and the first failure is the one to tell
            with contextlib.suppress(*([OSError] if error else [])):
                if not isinstance(error, OSError):
                    self._flush()
                    os.ftruncate(self._out, self._position)  # where it ends in zeros
        finally:
            self._hasher.shutdown()


def _hash_all(digest: Any, batch: list[bytes]) -> None:
    for piece in batch:
        digest.update(piece)


def _write_all(out: int, batch: list[bytes], at: int) -> None:
    """What is zero becomes a hole."""
    for piece in batch:
        if piece and (piece[0] or piece[-1] or piece != _ZEROS[:len(piece)]):
            _write(out, memoryview(piece), at)
        at += len(piece)


def _write(out: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(out, data, at)
        data, at = data[done:], at + done
