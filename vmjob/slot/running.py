"""Which run has a guest in a scratch folder: for those who look in from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vmjob.core import locks
from vmjob.core.errors import SlotError
from vmjob.core.scratch import PREFIX

_LOCK = ".lock"


def running(folder: Path, seconds: float, note: Callable[[str], None]) -> Path:
    """The folder of the one run of ours in ``folder`` (or ``folder`` itself, if it is a run's) that has a guest.

    Waits at most ``seconds`` for a run to begin, and for its guest as long as the run lives; ``note`` is told so.
    Raises SlotError when there is none, or more than one.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            inside = [folder] if folder.name.startswith(PREFIX) else sorted(folder.glob(PREFIX + "*"))
        except OSError as refused:
            raise SlotError(f"{folder}: {refused.strerror}", "check the path of the scratch folder") from refused
        alive = [one for one in inside if _lives(one)]
        # a run may have a second folder, for what it prepares; QEMU's is the one with the sockets
        guests = [one for one in alive if (one / "attach.sock").exists()]
        if len(guests) == 1:
            return guests[0]
        if guests:
            raise SlotError(f"{folder}: {len(guests)} guests run there",
                            "say which: --scratch " + " or ".join(map(str, guests[:5])))
        if alive and not told:
            note("the job prepares its guest")
            told = True
        if not alive and time.monotonic() >= deadline:
            raise SlotError(f"{folder}: no guest of yours runs there",
                            "the job has not begun, or it is over; --scratch names the folder where its run lives")
        time.sleep(0.2)


def _lives(folder: Path) -> bool:
    """A run holds the lock in its folder until it ends, however that comes."""
    with suppress(OSError):
        if folder.lstat().st_uid != os.geteuid():
            return False
        handle = locks.open_for_reading(folder / _LOCK)
        try:
            return not locks.attempt(handle, locks.SHARED)
        finally:
            os.close(handle)
    return False
