"""Files that decide for others: nobody but root, or whoever may be, can have written them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from vmjob.core.accounts import user_name
from vmjob.core.errors import PolicyBroken

_LINKS = 40  # as many as the kernel follows
_UNMAPPED = 65534  # whose files those of users look like whom a namespace does not know


def safe(path: Path, owners: Collection[int]) -> Path:
    """The real path of ``path``, of which each folder, link and the file itself belong to one of the uids ``owners``,
    and can be written by nobody else (by others into a folder with the sticky bit, as /tmp is).

    Raises PolicyBroken naming the first step that is not so, or is not there, and what to do."""
    here = Path("/")
    _check(here, here.lstat(), path, owners)
    todo, links = list(Path(os.path.abspath(path)).parts[1:]), 0  # noqa: PTH100 - links must stay
    while todo:
        part = todo.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            found = step.lstat()
            if stat.S_ISLNK(found.st_mode):
                _owner(step, found, path, owners)
                links += 1
                target = step.readlink()
                todo = [*(target.parts[1:] if target.is_absolute() else target.parts), *todo]
                here = Path("/") if target.is_absolute() else here
                if links > _LINKS:
                    raise PolicyBroken(f"{path}: too many symbolic links", "name the file itself")
                continue
        except OSError as missing:
            raise PolicyBroken(f"{_of(step, path)}: {missing.strerror}",
                               "ask the admin of this node: it must be there, and readable by all") from missing
        _check(step, found, path, owners)
        here = step
    return here


def _owner(step: Path, found: os.stat_result, path: Path, owners: Collection[int]) -> None:
    if found.st_uid not in owners:
        raise PolicyBroken(f"{_of(step, path)} belongs to {user_name(found.st_uid)}, who could change what it decides",
                           f"chown {user_name(min(owners))} {step}" if found.st_uid != _UNMAPPED else
                           "it is another's, or this is a user namespace that does not know whose: map root there")


def _check(step: Path, found: os.stat_result, path: Path, owners: Collection[int]) -> None:
    _owner(step, found, path, owners)
    folder = stat.S_ISDIR(found.st_mode)
    # in a sticky folder nobody can replace what belongs to another
    if found.st_mode & 0o022 and not (folder and found.st_mode & stat.S_ISVTX):
        who = "everybody" if found.st_mode & 0o002 else "its group"
        raise PolicyBroken(f"{_of(step, path)} can be written by {who} (mode {stat.S_IMODE(found.st_mode):04o})",
                           f"chmod go-w {step}")
    if not folder and not stat.S_ISREG(found.st_mode):
        raise PolicyBroken(f"{_of(step, path)} is no file", "put a text file there")


def _of(step: Path, path: Path) -> str:
    return f"{path}" if step == path else f"{path}: {step}"
