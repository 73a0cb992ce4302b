"""Can another user change what lies at a path, by any folder on the way? For folders of verified bytes, of settings and
of locks, which must be nobody else's to swap."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmjob.core.accounts import user_name

_LINKS = 40  # as many as the kernel follows
_UNMAPPED = 65534  # whose files those of users look like whom a namespace does not know
_SYSTEM = 1000  # below it are the system's own accounts: condor, slurm, arc …


def flaw(path: Path) -> str:
    """Why what is at ``path``, or comes there, could be another's; empty where it could not.

    Each folder on the way, and each link, belongs to whoever asks or to root, and can be written by nobody else: by
    others only with the sticky bit, as /tmp is, and by a group only if that is the user's own. A folder of the system's
    own accounts (HTCondor's, with the slots) will do where nobody but the system can have put it. What is not there yet
    ends the way."""
    here, todo, links = Path("/"), list(Path(os.path.abspath(path)).parts[1:]), 0  # noqa: PTH100 - links must stay
    open_above = False
    while True:
        found = here.lstat()
        why = _flaw_of(here, found, open_above)
        if why:
            return why
        if stat.S_ISLNK(found.st_mode):
            links += 1
            target = here.readlink()
            todo = [*(target.parts[1:] if target.is_absolute() else target.parts), *todo]
            here = Path("/") if target.is_absolute() else here.parent
            if links > _LINKS:
                return f"{path}: too many symbolic links"
            continue
        if not todo or not stat.S_ISDIR(found.st_mode):
            return ""
        open_above = bool(found.st_mode & 0o022)
        step = todo.pop(0)
        here = here.parent if step == ".." else here / step
        if not os.path.lexists(here):
            return ""


def _flaw_of(step: Path, found: os.stat_result, open_above: bool) -> str:
    system = (found.st_uid < _SYSTEM or found.st_uid == _UNMAPPED) and not open_above
    if found.st_uid not in (0, os.geteuid()) and not system:
        return f"{step} belongs to {user_name(found.st_uid, 'uid ')}"
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return ""  # the mode of a link says nothing; in a sticky folder nobody replaces what is another's
    if found.st_mode & 0o002:
        return f"{step} can be written by everybody"
    if found.st_mode & 0o020 and found.st_gid != 0 and not _own_group(found.st_gid):
        return f"{step} can be written by its group"
    return ""


def shared_flaw(place: Path, closed: bool = False) -> tuple[str, str]:
    """What is wrong with a folder in which each user makes files that no other may touch, and what to do; empty where
    nothing is. ``closed``: it will do too if the admin has made a folder
    uid-UID for each user, and nobody else can make any."""
    import pwd

    found = place.lstat()
    try:
        condor = pwd.getpwnam("condor").pw_uid
    except KeyError:
        condor = 0
    if found.st_uid not in (0, os.geteuid(), condor):  # whom the sticky bit does not bind
        return (f"belongs to {user_name(found.st_uid, 'uid ')}, who can remove everybody's files there",
                f"chown root {place}")
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode) and (mode == 0o1777 or (closed and not mode & 0o022 and any(place.glob("uid-*")))):
        return "", ""
    wrong = f"has mode {mode:04o}: not all users can write there, or they could spoil each other's"
    return wrong, f"chmod 1777 {place}"


def _own_group(gid: int) -> bool:
    """Is it the group that many systems make for each user, with nobody else in it?"""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
