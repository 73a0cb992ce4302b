"""Files of a node, or of an image's tree: each change whole or not at all, and never outside of that tree.

Below another root than ``/`` no symbolic link is followed: who owns a tree must not choose what root writes elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Optional

from vmjob.core.site_errors import NodeUnchanged
from vmjob.node import wipe

_PATIENCE = 15  # seconds, as lckpwdf(3) has it
_LARGEST = 64 * 2**20
_NEW = ".vmjob-new."  # of a file that is being written; one that was left behind is overwritten


class Tree:
    """Paths are absolute, as on the node. Raises NodeUnchanged with the path and what to do for all that fails."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.real = root.resolve() == Path("/")

    def __str__(self) -> str:
        return "this node" if self.real else str(self.root)

    def read(self, path: PurePosixPath) -> Optional[str]:
        """What is in a file, None where there is none. Bytes that are no UTF-8 survive (surrogateescape)."""
        with self._told(path), self._parent(path) as folder:
            if folder is None:
                return None
            try:
                opened = os.open(path.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | self._links(), dir_fd=folder)
            except FileNotFoundError:
                return None
            with os.fdopen(opened, "rb") as file:
                found = os.fstat(opened)
                if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
                    raise OSError(errno.EINVAL, "it is no file that could be changed")
                return file.read().decode(errors="surrogateescape")

    def mode(self, path: PurePosixPath, owners: Collection[Optional[int]] = ()) -> Optional[int]:
        """The mode of a folder, None where there is none. ``owners``: on this node it must be one of theirs."""
        with self._told(path), self._parent(path) as folder:
            if folder is None:
                return None
            try:
                found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if not stat.S_ISDIR(found.st_mode) or (
                    owners and self.real and found.st_uid not in owners):
                raise OSError(errno.EINVAL, "it is no folder of root's")
            return stat.S_IMODE(found.st_mode)

    def names(self, path: PurePosixPath) -> list[str]:
        """The files in a folder that HTCondor reads there, and the like: none whose names begin with a dot."""
        with self._told(path), self._parent(path / "x") as folder:
            if folder is None:
                return []
            with os.scandir(folder) as entries:
                return sorted(one.name for one in entries if one.is_file(follow_symlinks=False) and one.name[0] != ".")

    @contextmanager
    def folder(self, path: PurePosixPath) -> Iterator[Optional[int]]:
        """A folder, open, which itself is no link; None where there is none, or none that we may read."""
        with self._told(path), self._parent(path) as parent:
            try:
                here = -1 if parent is None else os.open(path.name, wipe.FOLDER, dir_fd=parent)
            except OSError:
                here = -1
        try:
            yield here if here >= 0 else None
        finally:
            if here >= 0:
                os.close(here)

    def found(self, path: PurePosixPath) -> Optional[os.stat_result]:
        """What has this name, a link itself too; None: nothing."""
        with self._told(path), self._parent(path) as folder:
            try:
                return None if folder is None else os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def wipe(self, path: PurePosixPath) -> bool:
        """Remove a folder with all that is in it, or a link. On this node one that is a mount is emptied. False where
        something stays."""
        with self._told(path), self._parent(path) as folder:
            return folder is None or wipe.wipe(folder, path.name, enter_mount=self.real)

    def write(self, path: PurePosixPath, text: str, mode: int) -> None:
        """The whole file, at one instant, for good. One that is there keeps owner, mode and labels; a new one has
        ``mode``."""
        with self._told(path), self._parent(path) as folder:
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            spare = self.spare(path).name
            with suppress(FileNotFoundError):
                os.unlink(spare, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(spare, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(text.encode(errors="surrogateescape"))
                self._as_before(path.name, folder, file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            os.rename(spare, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)

    def _as_before(self, name: str, folder: int, new: int, mode: int) -> None:
        try:
            old = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | self._links(), dir_fd=folder)
        except FileNotFoundError:
            os.fchmod(new, mode)
            return
        try:
            found = os.fstat(old)
            if os.geteuid() == 0:
                os.fchown(new, found.st_uid, found.st_gid)
            os.fchmod(new, stat.S_IMODE(found.st_mode))
            with suppress(OSError):  # file systems without labels
                for label in os.listxattr(old):
                    os.setxattr(new, label, os.getxattr(old, label))
        finally:
            os.close(old)

    def remove(self, path: PurePosixPath) -> None:
        """A file, or nothing."""
        with self._told(path), self._parent(path) as folder, suppress(FileNotFoundError):
            if folder is not None:
                os.unlink(path.name, dir_fd=folder)

    @staticmethod
    def spare(path: PurePosixPath) -> PurePosixPath:
        """What a file is called while it is being written."""
        return path.with_name(_NEW + path.name)

    def tidy(self, path: PurePosixPath) -> None:
        """What one that was killed while it wrote this file has left behind."""
        self.remove(self.spare(path))

    def make_folder(self, path: PurePosixPath, mode: int, owner: Optional[int] = None) -> None:
        """One that is there gets mode and owner, as far as we may."""
        with self._told(path), self._parent(path) as folder:
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            with suppress(FileExistsError):
                os.mkdir(path.name, 0o700, dir_fd=folder)
            opened = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                if owner is not None and os.geteuid() == 0:
                    os.fchown(opened, owner, -1)
                os.fchmod(opened, mode)
            finally:
                os.close(opened)

    def rename(self, path: PurePosixPath, to: PurePosixPath) -> None:
        """Within one folder."""
        with self._told(to), self._parent(path) as folder:
            os.rename(path.name, to.name, src_dir_fd=folder, dst_dir_fd=folder)

    def remove_folder(self, path: PurePosixPath) -> bool:
        """False where something is in it: then it stays."""
        with self._told(path), self._parent(path) as folder:
            try:
                if folder is not None:
                    os.rmdir(path.name, dir_fd=folder)
            except FileNotFoundError:
                pass
            except OSError as full:
                if full.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else changes accounts meanwhile: the lock of lckpwdf(3), which useradd, usermod and vigr take."""
        with self._told(path := PurePosixPath("/etc/.pwd.lock")), self._parent(path) as folder:
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, "there is no folder /etc")
            opened = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            until = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as busy:
                    if time.monotonic() > until:
                        raise NodeUnchanged(f"somebody else changes accounts of {self} (they hold {path})",
                                            f"try again; fuser {path} says who it is") from busy
                    time.sleep(0.1)
            yield
        finally:
            os.close(opened)

    def _links(self) -> int:
        return 0 if self.real else os.O_NOFOLLOW

    @contextmanager
    def _parent(self, path: PurePosixPath) -> Iterator[Optional[int]]:
        """The folder with ``path`` in it, open; None where it is not there."""
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path.parts[1:-1]:
                try:
                    deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | self._links(), dir_fd=here)
                except FileNotFoundError:
                    yield None
                    return
                os.close(here)
                here = deeper
            yield here
        finally:
            os.close(here)

    @contextmanager
    def _told(self, path: PurePosixPath) -> Iterator[None]:
        """Errors name the file itself, and where it is: never what it is called while it is being written."""
        shown = self.root / str(path).replace(_NEW, "").lstrip("/")
        try:
            yield
        except PermissionError as refused:
            raise NodeUnchanged(f"{shown}: {refused.strerror}", "run it as root; --dry-run needs none") from refused
        except OSError as failed:
            link = failed.errno in (errno.ELOOP, errno.ENOTDIR)
            why = "a symbolic link, or no folder, is in the way" if link else failed.strerror
            raise NodeUnchanged(f"{shown}: {why}",
                                "put folders there, or look what it is; nothing was changed by halves") from failed
