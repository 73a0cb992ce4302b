"""What is watched beside a guest that runs: its time, its disks' growth, and the helper behind its network."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.core.errors import QemuFailed, SlotTooSmall
from vmjob.core.node_errors import NetworkLost, ScratchLost
from vmjob.core.units import format_size
from vmjob.run.state import Run

if TYPE_CHECKING:
    from vmjob.guest.session import Session
    from vmjob.vm.machine import Machine
    from vmjob.vm.net import Helper

LOST_HINT = "something on the node ended passt (its memory may have run out: see its kernel log); another try may do"


def kept_back(walltime: float, grace: float) -> float:
    """Seconds of ``walltime`` in which a guest ends in order: ``grace``, and of a short one a fifth. Pure."""
    return min(grace, max(3.0, walltime * 0.2))


async def walltime(this: Run, grace: float, over: Callable[[float], None]) -> None:
    """So long before the walltime that the guest can end in order within it, ``over`` is called with the seconds that
    are left: later the batch system ends us, and nothing comes back. The guest may not even have booted by then."""
    import asyncio

    if this.granted is None or this.granted.walltime is None:
        return
    kept = kept_back(this.granted.walltime, grace)
    await asyncio.sleep(this.clock + this.granted.walltime - kept - time.monotonic())
    over(kept)


async def qemu(machine: Machine, session: Session) -> None:
    """A full disk or a dead QEMU ends every wait with its own name."""
    session.fail(await machine.broken())


async def disk(this: Run, folder: Path, session: Session) -> None:
    """What the guest writes to its disks grows files in ``folder``; the slot's limit is for all of them."""
    import asyncio

    from vmjob.core.scratch import is_whole

    limit = this.slot.disk
    while True:
        if not is_whole(folder):
            session.fail(this.named(ScratchLost("the run's scratch folder was removed")))
            return
        used = 0
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                used += path.lstat().st_blocks * 512
        if used > limit:
            session.fail(SlotTooSmall(f"the guest has written {format_size(used)} to its disks, "
                                      f"the slot has {format_size(limit)}",
                                      "ask the batch system for more disk, or write less in the guest"))
            return
        await asyncio.sleep(1)


async def network(this: Run, helper: Helper, session: Session) -> None:
    """passt may be killed under the guest. Before the program runs that is a boot that failed, and the next one has a
    passt of its own; a glide-in can do nothing any more. Of another program it is noted: it may need no network,
    and its connections went with passt, so that a new one would not bring them back."""
    from vmjob.guest.channel import State

    why = await helper.lost()
    if session.channel.state >= State.EXITED:
        return
    this.network_lost = why
    if session.channel.state <= State.READY or this.job.glidein:
        session.fail(lost(why))
    else:
        this.note(f"the guest's network was lost: {why}; the program runs on without")


async def obeyed(command: Awaitable[None], session: Session) -> bool:
    """Did QEMU answer ``command``? If not, nobody can say whether the guest runs: that ends the session."""
    try:
        await command
    except QemuFailed as silent:
        session.fail(silent)
        return False
    return True


def lost(why: str) -> NetworkLost:
    return NetworkLost(f"the guest's network was lost while it ran: {why}", LOST_HINT)
