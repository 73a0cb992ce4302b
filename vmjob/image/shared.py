"""A cache that an admin keeps for all users of a machine (config.shared_cache()): jobs read it, and write nothing.

Its files are used in place. Each user hashes them once per boot of the host, as anybody's stamps are in a folder of
her own; and only those count that nobody but root and herself can change once they were hashed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

from vmjob.errors import ImageCorrupt
from vmjob.image.blobs import Blobs
from vmjob.image.stamps import Stamps
from vmjob.model import ImageFile
from vmjob.opened import Opened
from vmjob.progress import Bar


class Shared:
    """The shared cache ``root``, beside a user's ``own``."""

    def __init__(self, root: Path, own: Blobs) -> None:
        self.blobs = Blobs(root, theirs=True)
        self._own = own
        self._stamps = Stamps(own.root / "verified-shared")
        self._told: set[str] = set()

    def find(self, file: ImageFile, note: Callable[[str], None], stack: ExitStack,
             bar: Optional[Bar] = None) -> Optional[Opened]:
        """A file of an image, verified and open until ``stack`` ends; None where the shared cache has none, or none to
        be trusted: then ``note`` is told once what is wrong."""
        path = self.blobs.path(file.sha256)
        if not os.path.lexists(path):
            return None
        wrong = next(filter(None, map(distrusted, (self.blobs.root, path.parent.parent, path.parent, path))), "")
        if not wrong:
            try:
                here = self._own.open_at(path, file.sha256, file.size, self._stamps, stack, bar, follow=False)
                wrong = flaw(path, here.place.stat()) if here else ""  # of the very file
                if not wrong:
                    return here  # or it went meanwhile
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
        return flaw(path, path.lstat())
    except OSError as missing:
        return f"{path}: {missing.strerror}"


def flaw(path: Path, found: os.stat_result) -> str:
    """The same, of what is ``found`` there."""
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        return f"{path} is neither a folder nor a file"
    if found.st_uid not in (0, os.getuid()):
        return f"{path} belongs to user {found.st_uid}, not to root"
    if found.st_mode & 0o022:
        return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""
