"""What is the node's fault is told as the node's, and what a busy node delays is not held against the guest."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vmjob.errors import BootFailed, GuestHung, HostError, Interrupted, SlotError, VmjobError
from vmjob.guest.channel import State
from vmjob.guest.courier import Courier
from vmjob.guest.session import Session
from vmjob.model import Payload, Slot
from vmjob.node_errors import BootStarved, DiskFailed, GuestStarved, NodeExhausted, ScratchLost
from vmjob.outcome import Run
from vmjob.pace import Pace
from vmjob.progress import Reporter
from vmjob.slot.scratch import scratch
from vmjob.vm import probe

pytestmark = pytest.mark.unit


# ---------------------------------------------------------------- a busy node


def test_time_in_the_queue_for_a_cpu_is_not_had() -> None:
    """Two that want one CPU, one of them with next to no share of it."""
    cpu, spin = min(os.sched_getaffinity(0)), "while True: pass"
    place = {"preexec_fn": lambda: (os.sched_setaffinity(0, {cpu}), os.nice(0))}
    poor = {"preexec_fn": lambda: (os.sched_setaffinity(0, {cpu}), os.nice(19))}
    first = subprocess.Popen([sys.executable, "-c", spin], **place)  # type: ignore[call-overload]
    second = subprocess.Popen([sys.executable, "-c", spin], **poor)  # type: ignore[call-overload]
    try:
        if not Path(f"/proc/{second.pid}/schedstat").exists():
            pytest.skip("this kernel does not tell how long a process waits for a CPU")
        pace, had, wall = Pace(lambda: int(second.pid)), 0.0, 0.0
        for _ in range(60):
            time.sleep(0.05)
            step = pace.step()
            had, wall = had + step[0], wall + step[1]
        assert had < wall / 2
    finally:
        for one in (first, second):
            one.kill()
            one.wait()


def test_one_that_sleeps_had_its_time() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.1)
        pace = Pace(lambda: sleeper.pid)
        time.sleep(0.2)
        had, wall = pace.step()
        assert had > wall / 2 > 0
    finally:
        sleeper.kill()
        sleeper.wait()


class Poor(Pace):
    """Of each step a small part."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def step(self) -> tuple[float, float]:
        _, wall = super().step()
        return wall * self.part, wall


@pytest.mark.parametrize("part, kind", [(1.0, BootFailed), (0.1, BootStarved)])
def test_a_guest_that_never_boots(tmp_path: Path, part: float, kind: type[VmjobError]) -> None:
    """Attack overload."""
    async def boot() -> None:
        session = Session(Reporter(), tmp_path / "log", 1.0, Poor(part))
        await session.booted(0.2)

    with pytest.raises(BootFailed) as failed:
        asyncio.run(boot())
    assert type(failed.value) is kind and failed.value.transient is (kind is BootStarved)


@pytest.mark.parametrize("part, kind", [(1.0, GuestHung), (0.1, GuestStarved)])
def test_a_guest_that_falls_silent(tmp_path: Path, part: float, kind: type[VmjobError]) -> None:
    async def run() -> None:
        session = Session(Reporter(), tmp_path / "log", 0.2, Poor(part))
        await session.reached(State.EXITED, lambda: None)

    with pytest.raises(GuestHung) as failed:
        asyncio.run(run())
    assert type(failed.value) is kind


def test_a_console_that_still_speaks_has_more_time(tmp_path: Path) -> None:
    """As long as it has said something in the last quarter of its time, and three times as long at most."""
    async def boot() -> float:
        session, begun = Session(Reporter(), tmp_path / "log", 1.0), time.monotonic()

        async def speak() -> None:
            while True:
                session._printed += 1
                await asyncio.sleep(0.01)

        speaking = asyncio.ensure_future(speak())
        with pytest.raises(BootFailed):
            await session.booted(0.3)
        speaking.cancel()
        return time.monotonic() - begun

    assert asyncio.run(boot()) >= 0.9


# ---------------------------------------------------------------- names


def run_in(folder: Path) -> Run:
    made: Any = None
    this = Run(made if False else Payload.__new__(Payload), Slot.__new__(Slot), Reporter(), None)
    this.folder = folder
    return this


@pytest.mark.parametrize("error, kind", [
    (OSError(errno.EIO, "Input/output error", "/scratch/x"), DiskFailed),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), NodeExhausted),
    (OSError(errno.EMFILE, "Too many open files"), NodeExhausted), (MemoryError(), NodeExhausted),
    (RuntimeError("can't start new thread"), NodeExhausted), (PermissionError(errno.EACCES, "no"), HostError),
    (RuntimeError("something else"), VmjobError)])
def test_refusals_by_their_names(tmp_path: Path, error: Exception, kind: type[VmjobError]) -> None:
    with scratch(tmp_path) as folder:
        assert type(run_in(folder).named(error)) is kind


def test_a_cause_below_a_general_failure(tmp_path: Path) -> None:
    """The unpacker says that the output folder is at fault; it was the disk."""
    failure = SlotError("res: the outputs could not be unpacked", "check that the output folder may be written")
    failure.__cause__ = OSError(errno.EIO, "Input/output error")
    with scratch(tmp_path) as folder:
        assert type(run_in(folder).named(failure)) is DiskFailed


def test_a_folder_that_is_gone_explains_the_rest(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / ".lock").unlink()
        assert type(run_in(folder).named(SlotError("anything"))) is ScratchLost
        stopped = Interrupted("stopped by SIGTERM")
        assert run_in(folder).named(stopped) is stopped


# ---------------------------------------------------------------- nobody holds others up


def test_a_sibling_that_is_suspended_in_its_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "_PATIENCE", 0.2)
    with (tmp_path / "probe.lock").open("w") as sibling:
        fcntl.flock(sibling, fcntl.LOCK_EX)
        assert probe._cached("a key", "what", lambda: {"answer": 1}) == {"answer": 1}
    assert probe._cached("a key", "what", lambda: {"answer": 2}) == {"answer": 1}


def test_a_courier_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    heard: list[bytes] = []

    async def deliver() -> None:
        courier = Courier(heard.append)
        await courier.deliver(b"x")
        courier.close()

    asyncio.run(deliver())
    assert heard == [b"x"] and set(threading.enumerate()) <= before
