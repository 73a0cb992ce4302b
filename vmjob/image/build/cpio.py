"""A cpio archive (newc) as Linux unpacks it at boot, written without root: device nodes are only entries.

The same tree gives the same bytes: sorted, owned by root, no times, inode numbers counted up.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One member; ``mode`` with the type bits; ``data`` is content, or the target of a symbolic link."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    owner: int = 0


class Tree:
    """Collects entries; folders above an entry come by themselves. A later entry of a path replaces the earlier."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def folder(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        self._put(Entry(path, stat.S_IFDIR | mode, owner=owner))

    def file(self, path: str, data: bytes, mode: int = 0o644, owner: int = 0) -> None:
        self._put(Entry(path, stat.S_IFREG | mode, data, owner=owner))

    def link(self, path: str, target: str) -> None:
        self._put(Entry(path, stat.S_IFLNK | 0o777, target.encode()))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._put(Entry(path, stat.S_IFCHR | mode, rdev=(major, minor)))

    def _put(self, entry: Entry) -> None:
        parent = entry.path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.folder(parent)
        self._entries[entry.path] = entry

    def pack(self) -> bytes:
        """The archive. Sorted, so that a folder stands before what is in it."""
        members = [self._entries[path] for path in sorted(self._entries)]
        return b"".join(_member(entry, number) for number, entry in enumerate(members, 1)) + _trailer()


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, entry.owner, entry.owner, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _trailer() -> bytes:
    return _member(Entry("TRAILER!!!", 0), 0)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
