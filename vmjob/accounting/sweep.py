"""Records of runs that were killed, of all users of a node: root reads each user's as that user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vmjob.accounting.spool import Swept


def sweep_all(place: Path, dry: bool = False) -> Swept:
    """As ``sweep`` of spool.py; root does it for everybody, as each of them, so that what a user left there can lead
    nobody to another's files. Raises OSError where there is no spool."""
    from vmjob.accounting import spool

    if os.geteuid():
        (place / spool.OPEN).stat()
        return spool.sweep(place, dry)
    _ready()
    swept = []
    for uid in spool.owners(place):
        with _as(uid):
            swept.append(spool.sweep(place, dry))
    return spool.Swept(tuple(one for each in swept for one in each.delivered),
                       tuple(one for each in swept for one in each.stuck), sum(each.alive for each in swept))


def _ready() -> None:
    """Have all imported that a sweep needs: from a place that root can read, and a user perhaps not."""
    from vmjob.accounting.record import FORMATS, UsageRecord, from_json, render, to_json
    from vmjob.core.errors import JobError

    any_one = UsageRecord("0" * 8 + "-0000" * 3 + "-" + "0" * 12, "", "", "", 0, "", 0.0)
    from_json(to_json(any_one), "", JobError)
    with suppress(JobError):  # what complains has imports of its own
        from_json({"strange": ""}, "", JobError)
    for kind in FORMATS:
        render(any_one, kind)


@contextmanager
def _as(uid: int) -> Iterator[None]:
    """Be this user for files, and root again."""
    import pwd

    gid, groups = os.getegid(), os.getgroups()
    try:
        hers = pwd.getpwuid(uid).pw_gid
    except KeyError:
        hers = 65534
    try:
        if uid:
            os.setgroups([])
            os.setegid(hers)
            os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
