"""Which files were verified since the host booted: a small file for each, with what would change if its bytes did."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Union

from vmjob import config


class Stamps:
    """Stamps in ``folder``, which is made when needed. Where it cannot be written nothing is remembered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, name: str, seen: tuple[int, ...]) -> None:
        """From now on, and until the host boots, the bytes of the file that was ``seen`` (its identity before it was
        read) are trusted as ``name``."""
        target, temporary = self.folder / name, self.folder / f".{name}.{os.getpid()}"
        text = " ".join([*map(str, seen), config.boot_id()])
        with contextlib.suppress(OSError):
            target.parent.mkdir(exist_ok=True)
            temporary.write_text(text)
            temporary.replace(target)

    def hold(self, name: str, path: Path) -> bool:
        """Whether ``path`` is still the file that was verified. Only the path of an open one (opened) stays so."""
        try:
            words = (self.folder / name).read_text().split()
            now = identity(path)
            then = tuple(map(int, words[:-1]))
        except (OSError, ValueError):
            return False
        if words[-1:] != [config.boot_id()] or not unchanged(then, now):
            return False
        if then != now:
            self.make(name, now)
        return True

    def drop(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def identity(path: Union[Path, int]) -> tuple[int, ...]:
    """Device, inode, size, mtime, ctime and number of links, of a path or a descriptor."""
    s = path.stat() if isinstance(path, Path) else os.fstat(path)
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink)


def unchanged(then: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether nobody wrote to the file between two identities of it. A job's folder with a link to it that came or went
    moves ctime, not bytes."""
    return len(then) == len(now) and then[:4] == now[:4] and (then[4] == now[4] or then[5] != now[5])
