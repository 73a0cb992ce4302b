"""What is watched beside a guest that runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from vmjob.core.errors import VmjobError
from vmjob.core.model import Boot, Granted, ImageFile, Job, Manifest, Payload, Slot
from vmjob.core.progress import Reporter
from vmjob.run import guest_watch
from vmjob.run.guest import GRACE, Guest
from vmjob.run.state import Run

pytestmark = pytest.mark.unit


def run_of(tmp_path: Path, walltime: int) -> Run:
    manifest = Manifest("i", (ImageFile("disk", "qcow2", "d", 1, "0" * 64),), (Boot.DISK,))
    payload, slot = Payload(Job("j", "i", ("true",)), manifest, {}), Slot("machine", tmp_path, 1, 2**30, 2**30)
    this = Run(payload, slot, Reporter(), None)
    this.granted = Granted(1, 2**30, 2**30, walltime)
    return this


@pytest.mark.parametrize("walltime", [10, 60, 100, 3600])
def test_the_guest_has_to_end_within_its_walltime(tmp_path: Path, walltime: int) -> None:
    """Of 60 s a guest was told at 54, and might live until 74: the batch system kills first, and nothing comes back."""
    this, told = run_of(tmp_path, walltime), list[float]()
    this.clock = time.monotonic() - walltime  # its time is over
    asyncio.run(guest_watch.walltime(this, GRACE, told.append))
    assert told == [guest_watch.kept_back(walltime, GRACE)]
    assert told[0] <= min(GRACE, max(3, walltime / 2))

    class Told(Guest):
        def __init__(self) -> None:
            super().__init__(this, None, tmp_path, None)  # type: ignore[arg-type]

    guest = Told()
    guest._over(told[0])
    assert guest.left is not None and told[0] - 1 < guest.left <= told[0]


def test_a_watch_that_dies_ends_the_run_by_its_name(tmp_path: Path) -> None:
    """An OSError in the watch of the disk ended the limit of the disk, without a word."""
    failed = list[VmjobError]()

    class Session:
        def fail(self, error: VmjobError) -> None:
            failed.append(error)

    async def broken() -> None:
        raise OSError(5, "Input/output error", str(tmp_path / "overlay.qcow2"))

    guest: Any = Guest(run_of(tmp_path, 60), None, tmp_path, None)  # type: ignore[arg-type]
    guest._loop, guest._session = asyncio.new_event_loop(), Session()
    try:
        guest._spawn(broken())
        guest._loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        guest._loop.close()
    assert [error.transient for error in failed] == [True] and "Input/output error" in failed[0].message
