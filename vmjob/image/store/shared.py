"""A cache that an admin keeps for all users of a machine (config.shared_cache()): jobs read it, and write nothing.

Its files are used in place. Each user hashes them once per boot of the host, as anybody's stamps are in a folder of
her own; and only those count that nobody but root and herself can change once they were hashed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from vmjob.core.errors import ImageCorrupt
from vmjob.core.model import ImageFile
from vmjob.core.progress import Bar
from vmjob.image.store.blobs import Blobs
from vmjob.image.store.stamps import Stamps


class Shared:
    """The shared cache ``root``, beside a user's ``own``."""

    def __init__(self, root: Path, own: Blobs) -> None:
        self.blobs = Blobs(root, theirs=True)
        self._own = own
        self._stamps = Stamps(own.root / "verified-shared")
        self._told: set[str] = set()

    def find(self, file: ImageFile, note: Callable[[str], None], bar: Optional[Bar] = None) -> Optional[Path]:
        """Where a file of an image is, verified; None where the shared cache has none, or none to be trusted: then
        ``note`` is told once what is wrong."""
        path = self.blobs.path(file.sha256)
        if not os.path.lexists(path):
            return None
        wrong = next(filter(None, map(distrusted, (self.blobs.root, path.parent.parent, path.parent, path))), "")
        if not wrong:
            try:
                if self._own.check_at(path, file.sha256, file.size, self._stamps, bar):
                    return path
                return None  # it went meanwhile
            except ImageCorrupt as corrupt:
                wrong = corrupt.message
            except OSError as unreadable:
                wrong = f"{path}: {unreadable.strerror}"
        if wrong not in self._told:
            self._told.add(wrong)
            note(f"the shared cache is not used for this: {wrong}")
        return None


def distrusted(path: Path) -> str:
    """Why a file or a folder is not to be trusted: somebody else can change it. Empty where nobody can."""
    try:
        found = path.lstat()
    except OSError as missing:
        return f"{path}: {missing.strerror}"
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        return f"{path} is neither a folder nor a file"
    if found.st_uid not in (0, os.getuid()):
        return f"{path} belongs to user {found.st_uid}, not to root"
    if found.st_mode & 0o022:
        return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""
