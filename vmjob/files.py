"""Moving and removing files: fast, sparse, and never through somebody's symbolic link."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Optional

from vmjob import interrupt
from vmjob.progress import Bar

log = logging.getLogger("vmjob.files")

FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 16 * 2**20  # copied in the kernel
CHUNK = 2 * 2**20  # read into memory
_FICLONE = 0x40049409
SECRET = 64 * 2**10  # bytes, at most
# What vmjob itself writes among the results of a job.
RESULT_FILES = ("result.json", "console.log")
Advance = Callable[[float], None]


def _quiet(_: float) -> None:
    return None


def remove_tree(folder: Path) -> None:
    """Remove a folder (or a file or link) with all that is in it, read-only or not; links are removed, never followed.

    What vanishes meanwhile is fine (two may clean up at once). Raises OSError for what cannot be removed.
    """
    if real_kind(folder) != "folder":
        folder.unlink(missing_ok=True)
        return
    # a stack, not recursion: a guest chooses how deep its outputs are
    stack = [folder]
    while stack:
        here = stack[-1]
        try:
            found = _empty_files(here)
            if found:
                stack.extend(found)
                continue
            here.rmdir()
        except (FileNotFoundError, NotADirectoryError):
            pass
        stack.pop()


def _empty_files(folder: Path) -> list[Path]:
    """Unlink the files of one folder; its subfolders."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        folder.chmod(0o700)
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    Path(entry.path).unlink()
    return below


def copy_range(source: int, target: int, start: int, to: int, length: int, advance: Advance = _quiet) -> int:
    """Copy ``length`` bytes between two open files inside the kernel, from offset ``start`` to offset ``to``.

    Returns the bytes copied: fewer only where the source ends. Raises OSError.
    """
    done, method = 0, 0
    while done < length:
        interrupt.check()
        some = min(_CHUNK, length - done)
        try:
            moved = _METHODS[method](source, target, start + done, to + done, some)
        except OSError as refused:
            # old kernels and network file systems lack the fast ways in many voices
            if refused.errno in FULL or method == len(_METHODS) - 1:
                raise
            method += 1
            continue
        if moved == 0:
            if method == len(_METHODS) - 1:
                break
            method = len(_METHODS) - 1  # some file systems answer 0 for "cannot"
            continue
        done += moved
        advance(moved)
    return done


def _by_range(source: int, target: int, start: int, to: int, length: int) -> int:
    return os.copy_file_range(source, target, length, start, to)


def _by_sendfile(source: int, target: int, start: int, to: int, length: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, start, length)


def _by_hand(source: int, target: int, start: int, to: int, length: int) -> int:
    data = memoryview(os.pread(source, min(length, 2**20), start))
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], to + written)
    return written


_METHODS: list[Callable[[int, int, int, int, int], int]] = [_by_range, _by_sendfile, _by_hand]
if not hasattr(os, "copy_file_range"):
    del _METHODS[0]


def copy_sparse(source: int, target: int, start: int, to: int, length: int, advance: Advance = _quiet) -> int:
    """As copy_range, but holes of the source stay holes: the target there must already read as zeros."""
    position, end = start, start + length
    while position < end:
        try:
            data = min(os.lseek(source, position, os.SEEK_DATA), end)
            hole = min(os.lseek(source, data, os.SEEK_HOLE), end) if data < end else end
        except OSError as none:
            if none.errno == errno.ENXIO:  # nothing but hole up to the end of the file
                size = os.fstat(source).st_size
                stop = max(position, min(end, size))
                advance(stop - position)
                return stop - start
            data, hole = position, end
        advance(data - position)
        copied = copy_range(source, target, data, to + data - start, hole - data, advance)
        if copied < hole - data:
            return data + copied - start
        position = hole
    return length


def place(source: Path, target: Path) -> None:
    """The bytes of ``source`` under the new name ``target``, without copying where the file system can:
    reflink, else hard link, else copy. Raises OSError; FileExistsError where ``target`` is there."""
    with source.open("rb") as origin:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(target, flags, 0o644)
        try:
            if reflink(origin.fileno(), made):
                return
            with suppress(OSError):
                spare = target.with_name(f".{target.name}.link")
                # the file that is open here, whatever lies at its name; with a folder, or links would not be followed
                os.link(f"/proc/self/fd/{origin.fileno()}", spare, src_dir_fd=origin.fileno())
                spare.replace(target)
                return
            size = os.fstat(origin.fileno()).st_size
            os.ftruncate(made, size)
            copy_sparse(origin.fileno(), made, 0, 0, size)
        finally:
            os.close(made)


def write_durably(target: Path, text: str) -> None:
    """``text`` as the whole of a file, which others find as it was or as it is now, also after a power cut; its folder
    is made. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def sync_folder(folder: Path) -> None:
    """The names in it survive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_secret(path: Path, text: str) -> None:
    """A new file that nobody else can read. Raises OSError; FileExistsError where ``path`` is there."""
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(made, "w", encoding="utf-8") as file:
        file.write(text)


def take_secret(path: Path) -> str:
    """What is in the file, which is overwritten and removed: from now on it is in memory alone. Empty where there is
    none. One that cannot be removed is told in the log. Raises OSError."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    with os.fdopen(opened, "rb", buffering=0) as file:
        data = file.read(SECRET) or b""
    try:
        try:
            _blank(path)
        finally:
            path.unlink()
    except OSError as stuck:
        log.warning("%s holds a secret, and does not go away: %s", path, stuck.strerror)
    return data.decode(errors="replace")


def _blank(path: Path) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(opened, "wb", buffering=0) as file:
        file.write(bytes(os.fstat(opened).st_size))
        os.fsync(opened)


def reflink(source: int, target: int) -> bool:
    """Let the open file ``target`` share the blocks of ``source``, where the file system can."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def chunks(path: Path, bar: Optional[Bar] = None) -> Iterator[memoryview]:
    """The bytes of a file in large pieces, valid until the next one is asked for; the next is read while the
    caller works on this one, so that hashing is as fast as hashing memory."""
    from concurrent.futures import ThreadPoolExecutor

    buffers = [bytearray(CHUNK), bytearray(CHUNK)]
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
        with suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        turn, pending = 0, reader.submit(file.readinto, buffers[0])
        while True:
            count = pending.result() or 0
            if not count:
                return
            ready, turn = buffers[turn], 1 - turn
            pending = reader.submit(file.readinto, buffers[turn])
            yield memoryview(ready)[:count]
            interrupt.check()
            if bar:
                bar.advance(count)


def hash_file(path: Path, bar: Optional[Bar] = None) -> tuple[str, int]:
    """SHA-256 as hexadecimal digits, and the size in bytes."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(path, bar):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def real_kind(path: Path) -> Optional[str]:
    """``folder``, ``file``, ``link`` or ``other``: what is there itself, not where it leads; None for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
