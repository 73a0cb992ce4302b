"""Files named by the SHA-256 of their bytes, shared by many processes at once.

What lies below the folder ``root``, all of it made when first needed::

    blobs/sha256/HEX    the bytes; here only whole and verified: linked or renamed in as the last step
    tmp/HEX             a copy on its way, of whoever holds the lock; what kill -9 leaves is overwritten
    locks/HEX           flock: one process copies or hashes, the others wait and find it done
    verified/HEX        the stamp: these bytes were hashed since the host booted
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from vmjob import config
from vmjob.errors import ImageCorrupt, ImageMissing, ScratchFull
from vmjob.files import CHUNK, FULL, chunks, hash_file, reflink
from vmjob.model import Fetch, ImageFile
from vmjob.progress import Bar

_ROOM = "make room there, or set VMJOB_CACHE to a larger disk"


class Blobs:
    """A folder of blobs. A folder that cannot be written serves all the same, but remembers nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        return self.root / "blobs/sha256" / sha256

    def check(self, sha256: str, size: int, bar: Optional[Bar] = None) -> bool:
        """Whether the blob is here and its bytes are right, hashing them at most once per boot of the host.
        Raises ImageCorrupt."""
        path = self.path(sha256)
        if self._stamped(sha256):
            return True
        if not path.exists():
            return False
        with self._lock(sha256):
            if self._stamped(sha256):
                return True
            if not path.exists():
                return False
            self._verify(path, sha256, size, bar)
            return True

    def take(self, source: Path, sha256: str, size: int, *, link: bool = False, durable: bool = True,
             bar: Optional[Bar] = None) -> Path:
        """Bring a file in, unless it is here; its path. Copied while hashed, as a reflink where the file system
        can; ``link`` allows a hard link to a file of our own. ``durable``: survive a power cut, not only a kill.

        Raises ImageCorrupt naming ``source``, ImageMissing, ScratchFull, or OSError (read-only folder).
        """
        self._make_folders()
        with contextlib.suppress(ImageCorrupt):  # a good source mends a spoilt blob
            if self.check(sha256, size, bar):
                return self.path(sha256)
        with self._lock(sha256):
            if self._stamped(sha256):
                return self.path(sha256)
            temporary = self.root / "tmp" / sha256
            temporary.unlink(missing_ok=True)
            try:
                if link and self._linked(source, temporary):
                    _expect(source, hash_file(temporary, bar), sha256, size)
                else:
                    _expect(source, copy_file(source, temporary, bar, durable=durable), sha256, size)
                temporary.replace(self.path(sha256))
            except FileNotFoundError as missing:
                raise ImageMissing(f"{source}: no such file, though its manifest names it",
                                   "fetch the image again") from missing
            except OSError as error:
                temporary.unlink(missing_ok=True)
                if error.errno in FULL:
                    raise ScratchFull(f"{self.root}: no space for {source.name}", _ROOM) from error
                raise
            except ImageCorrupt:
                temporary.unlink(missing_ok=True)
                raise
            if durable:
                _sync_folder(self.path(sha256).parent)
            self._stamp(sha256)
        return self.path(sha256)

    def receive(self, file: ImageFile, fetch: Fetch, bar: Optional[Bar] = None) -> Path:
        """Bring a file in from elsewhere, unless it is here; its path. One process fetches, the others wait for it.

        Raises ImageCorrupt where two tries brought other bytes, ScratchFull, OSError (read-only folder), or what
        ``fetch`` raises.
        """
        self._make_folders()
        with contextlib.suppress(ImageCorrupt):
            if self.check(file.sha256, file.size):
                return self.path(file.sha256)
        with self._lock(file.sha256):
            if not self._stamped(file.sha256):
                temporary = self.root / "tmp" / file.sha256
                receive_file(file, fetch, temporary, bar)
                temporary.replace(self.path(file.sha256))
                self._stamp(file.sha256)
        return self.path(file.sha256)

    def remove(self, sha256: str) -> None:
        """Remove a blob and what is remembered of it; a VM that has it open keeps it until it ends."""
        with self._lock(sha256):
            for folder in ("blobs/sha256", "verified", "tmp"):
                (self.root / folder / sha256).unlink(missing_ok=True)

    # -------------------------------------------------------------- details

    def _make_folders(self) -> None:
        for folder in ("blobs/sha256", "tmp", "locks", "verified"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def _verify(self, path: Path, sha256: str, size: int, bar: Optional[Bar]) -> None:
        before = _identity(path)
        _expect(path, hash_file(path, bar), sha256, size)
        if _identity(path) == before:  # nobody wrote to it while we read
            self._stamp(sha256)

    @staticmethod
    def _linked(source: Path, target: Path) -> bool:
        # somebody else's file could be changed after it was verified
        try:
            if source.stat().st_uid != os.getuid() or source.is_symlink():
                return False
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            return False
        return True

    @contextlib.contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        """One process at a time for each blob; in a folder that cannot be written there is nothing to guard."""
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / sha256, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError:
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _stamp(self, sha256: str) -> None:
        target, temporary = self.root / "verified" / sha256, self.root / f"verified/.{sha256}.{os.getpid()}"
        text = " ".join([*map(str, _identity(self.path(sha256))), config.boot_id()])
        with contextlib.suppress(OSError):
            target.parent.mkdir(exist_ok=True)
            temporary.write_text(text)
            temporary.replace(target)

    def _stamped(self, sha256: str) -> bool:
        try:
            words = (self.root / "verified" / sha256).read_text().split()
            now = _identity(self.path(sha256))
            device, inode, size, mtime, ctime, links = map(int, words[:-1])
        except (OSError, ValueError):
            return False
        same = (device, inode, size, mtime) == now[:4] and words[-1] == config.boot_id()
        if same and links != now[5]:
            self._stamp(sha256)  # a job's folder with a link to this file came or went: that moves ctime, not bytes
            return True
        return same and ctime == now[4]


def _identity(path: Path) -> tuple[int, ...]:
    s = path.stat()
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink)


def _expect(path: Path, found: tuple[str, int], sha256: str, size: int) -> None:
    if found[1] != size:
        raise ImageCorrupt(f"{path}: {found[1]} bytes, but the manifest says {size} (sha256:{sha256})",
                           "the file is cut short or another one: fetch or build the image again")
    if found[0] != sha256:
        raise ImageCorrupt(f"{path}: expected sha256:{sha256}, found sha256:{found[0]}",
                           "the bytes changed on the way: fetch or build the image again")


def copy_file(source: Path, target: Path, bar: Optional[Bar] = None, *, durable: bool = False) -> tuple[str, int]:
    """Copy (blocks shared where the file system can, holes kept) and hash what was copied: digits and size."""
    with target.open("wb", buffering=0) as out, source.open("rb") as file:
        os.fchmod(out.fileno(), 0o444)
        if reflink(file.fileno(), out.fileno()):
            return hash_file(target, bar)
        digest, size, zeros = hashlib.sha256(), 0, bytes(CHUNK)
        for chunk in chunks(source, bar):
            digest.update(chunk)
            size += len(chunk)
            if chunk == memoryview(zeros)[:len(chunk)]:
                out.seek(len(chunk), os.SEEK_CUR)
            else:
                _write(out.fileno(), chunk)
        out.truncate(size)
        if durable:
            os.fsync(out.fileno())
    return digest.hexdigest(), size


def receive_file(file: ImageFile, fetch: Fetch, target: Path, bar: Optional[Bar] = None) -> None:
    """Write what ``fetch`` brings to ``target``, hashing it on the way; wrong bytes are fetched once more. On any
    failure ``target`` is removed. Raises as Blobs.receive."""
    free = os.statvfs(target.parent)
    if free.f_bavail * free.f_frsize < file.size:  # told before it has travelled
        raise ScratchFull(f"{target.parent}: no space for {file.path} ({file.size} bytes)", _ROOM)
    try:
        for last in (False, True):
            found = _received(file, fetch, target, bar)
            if last or found == (file.sha256, file.size):
                _expect(Path(file.path), found, file.sha256, file.size)
                return
    except BaseException as failure:
        target.unlink(missing_ok=True)
        if isinstance(failure, OSError) and failure.errno in FULL:
            raise ScratchFull(f"{target.parent}: no space for {file.path}", _ROOM) from failure
        if isinstance(failure, ImageCorrupt):  # twice
            failure.hint = ("the copy at the submit side is spoilt: remove it with these jobs (vmjob rm ID --images), "
                            "and submit again")
        raise


def _received(file: ImageFile, fetch: Fetch, target: Path, bar: Optional[Bar]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    target.unlink(missing_ok=True)
    with target.open("xb", buffering=0) as out:
        os.fchmod(out.fileno(), 0o444)
        for piece in fetch(file, 0):
            digest.update(piece)
            size += len(piece)
            _write(out.fileno(), memoryview(piece))
            if bar:
                bar.advance(len(piece))
            if size > file.size:
                break
    return digest.hexdigest(), size


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data):]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
