"""One guest, watched from outside: boot → program → outputs, over the streams of a running machine.

Times are by the host's clock alone, and of them only what QEMU had (``pace``): a guest that waits for the node's CPUs
is not late. Heartbeats are counted, never dated. While the guest is paused no silence is held against it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Optional, TypeVar

from vmjob.core.errors import AgentFailed, BootFailed, GuestHung, GuestVanished, HostError, KernelPanic, VmjobError
from vmjob.core.node_errors import BootStarved, GuestStarved
from vmjob.core.pace import STARVED, Pace
from vmjob.core.progress import Reporter
from vmjob.guest.channel import Channel, State, clean
from vmjob.guest.courier import Courier

_CONSOLE_CAP = 4 * 2**20  # a guest can print for ever; its log may not grow for ever
_TAIL = 16 * 1024
_FROZEN = 3.0  # seconds; a wait of one second that takes this long means that the batch system froze the slot
T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_NO_PCI = b"PCI: Fatal: No config space access"  # every kernel says so on microvm, and it would read as the cause
_PANIC = b"Kernel panic - not syncing"


class Session:
    """Reads the four streams of a guest in the background until it is closed.

    ``silence``: seconds without any sign after which a guest that runs counts as hung. The caller
    closes it (``close``) after the machine has ended, so that the last bytes are heard.
    """

    def __init__(self, reporter: Reporter, console_log: Path, silence: float, pace: Optional[Pace] = None) -> None:
        self.channel = Channel()
        self.paused = False
        self._reporter = reporter
        self._console_log = console_log
        self._silence = silence
        self._tail = b""
        self._failure: Optional[VmjobError] = None
        self._news = asyncio.Event()
        self._pace = pace or Pace()
        self._quiet = self._quiet_wall = 0.0  # seconds that it had without a sign of life, and that went by meanwhile
        self._printed = 0  # bytes on the console
        self._couriers: list[Courier] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._writer: Optional[asyncio.StreamWriter] = None
        self._writers: list[asyncio.StreamWriter] = []

    def attach(self, control: Stream, stdout: Stream, stderr: Stream, console: Stream) -> None:
        """Begin to read the streams; ``close`` closes their writers."""
        self._writer = control[1]
        # kept, as a writer that is collected closes its connection
        self._writers = [stream[1] for stream in (control, stdout, stderr, console)]
        console_task = asyncio.ensure_future(self._read_console(console[0]))
        self._tasks = [
            asyncio.ensure_future(self._read_output("stdout", stdout[0])),
            asyncio.ensure_future(self._read_output("stderr", stderr[0])),
            console_task,
            asyncio.ensure_future(self._read_control(control[0], console_task)),
        ]

    # ------------------------------------------------------------ what the flow waits for

    async def booted(self, timeout: float) -> None:
        """Until the agent says it is ready. Raises BootFailed when the guest had ``timeout`` seconds (three times as
        many while its console still has something to say), KernelPanic, GuestVanished."""
        had, wall, spoke, printed = 0.0, 0.0, 0.0, self._printed
        self._pace.step()
        while self.channel.state < State.READY:
            if had >= timeout and (had - spoke >= timeout / 4 or had >= 3 * timeout):
                raise _never_ready(had, wall)
            await self._wait(min(max(timeout - had, 0.1), 1.0))
            step = self._pace.step()
            if not self.paused:
                had, wall = had + step[0], wall + step[1]
            if self._printed != printed:
                printed, spoke = self._printed, had

    async def unless_failed(self, work: Awaitable[T]) -> T:
        """The outcome of ``work``, or what ``fail`` was told meanwhile: then ``work`` is given up."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                news = asyncio.ensure_future(self._news.wait())
                try:
                    await asyncio.wait({task, news}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                self._news.clear()
                if self._failure is not None:
                    raise self._failure
            return task.result()
        finally:
            task.cancel()

    async def send(self, lines: bytes) -> None:
        """Send lines to the agent. Where nobody is left to hear them, the waits say so."""
        if self._writer is None:
            raise RuntimeError("attach comes first")
        self._writer.write(lines)
        with suppress(ConnectionError):
            await self._writer.drain()
        self._quiet = self._quiet_wall = 0.0

    async def reached(self, state: State, until: Callable[[], Optional[float]]) -> bool:
        """Wait for ``state``; False when the moment ``until()`` (monotonic, asked again and again; None: no
        limit) has passed. Raises GuestHung, KernelPanic, GuestVanished, AgentFailed."""
        self._pace.step()
        while self.channel.state < state:
            moment = until()
            left = 3600.0 if moment is None else moment - time.monotonic()
            if left <= 0:
                return False
            if self._quiet >= self._silence:
                raise _silent(self._quiet, self._quiet_wall)
            await self._wait(min(left, max(self._silence - self._quiet, 0.1), 1.0))
            had, wall = self._pace.step()
            if self.paused or wall > _FROZEN:  # we stood still ourselves, and most likely the guest with us
                self._quiet = self._quiet_wall = 0.0
            else:
                self._quiet, self._quiet_wall = self._quiet + had, self._quiet_wall + wall
        return True

    async def close(self) -> None:
        """Hear the streams to their ends (the machine has ended; at most 2 s), then stop reading."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2)
            for task in late:
                task.cancel()
            for wrong in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(wrong, Exception):
                    raise wrong
        for writer in self._writers:
            writer.close()
        for courier in self._couriers:
            courier.close()

    def fail(self, failure: VmjobError) -> None:
        """End every wait with ``failure``; the first one stands."""
        self._failure = self._failure or failure
        self._news.set()

    @property
    def may_hear(self) -> bool:
        """Has the job begun, so that the guest ends by itself when it is asked to, or soon?"""
        return self.channel.state >= State.STARTED

    def wake(self) -> None:
        """Have the waits ask ``until`` again."""
        self._news.set()

    @property
    def console_tail(self) -> tuple[str, ...]:
        """The last lines of the guest's console, made fit for printing."""
        return tuple(clean(line) for line in self._tail.split(b"\n") if _NO_PCI not in line)[-40:]

    # ------------------------------------------------------------ reading

    async def _wait(self, timeout: float) -> None:
        self._reporter.tick(self.channel.percent)
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        try:
            await asyncio.wait_for(self._news.wait(), timeout)
        except asyncio.TimeoutError:
            return
        if self._failure is not None:
            raise self._failure

    async def _read_output(self, stream: str, reader: asyncio.StreamReader) -> None:
        courier = Courier(partial(self._reporter.output, stream))
        self._couriers.append(courier)
        while data := await _read(reader):
            try:
                await courier.deliver(data)
            except OSError as refused:  # a full disk under our own stdout; what follows is dropped, not waited for
                self.fail(HostError(f"the program's {stream} cannot be written: {refused.strerror}",
                                    "free space where it goes, or send it elsewhere"))

    async def _read_control(self, reader: asyncio.StreamReader, console: Awaitable[None]) -> None:
        def take(data: bytes) -> None:
            self._quiet = self._quiet_wall = 0.0
            try:
                self.channel.feed(data)
            except AgentFailed as failure:
                self.fail(failure)
            self._news.set()

        while data := await _read(reader):
            take(data)
        if self.channel.state < State.BYE:
            await asyncio.wait([asyncio.ensure_future(console)], timeout=1)  # a panic's last words explain it
            self.fail(GuestVanished("the guest ended without telling a result",
                                    "the program or the kernel powered the guest off, or QEMU was killed; "
                                    "see the console in result.json"))

    async def _read_console(self, reader: asyncio.StreamReader) -> None:
        written = 0
        with self._console_log.open("wb") as log:
            while data := await _read(reader):
                self._tail = (self._tail + data)[-_TAIL:]
                with suppress(OSError):  # a log that does not fit is no reason to lose the run
                    log.write(data[:max(0, _CONSOLE_CAP - written)])
                    log.flush()
                written += len(data)
                self._printed = written
                if _PANIC in self._tail and self.channel.state < State.BYE:
                    words = self._tail[self._tail.index(_PANIC):].partition(b"\n")[0]
                    self.fail(KernelPanic(f"the guest's kernel panicked: {clean(words)[:200]}",
                                          "see the console in result.json; the image or its boot method is at fault"))


def _never_ready(had: float, wall: float) -> BootFailed:
    if wall > STARVED * had:
        return BootStarved(f"the guest did not say hello within {wall:.0f} s, in which this node let it run for "
                           f"{had:.0f} s", "the node is overloaded: another one may do, or this one later")
    return BootFailed(f"the guest did not say hello within {had:.0f} s",
                      "see the end of the console in result.json; a slower machine needs a larger VMJOB_BOOT_TIMEOUT")


def _silent(had: float, wall: float) -> GuestHung:
    if wall > STARVED * had:
        return GuestStarved(f"the guest gave no sign of life for {wall:.0f} s, in which this node let it run for "
                            f"{had:.0f} s", "the node is overloaded: another one may do, or this one later")
    return GuestHung(f"the guest gave no sign of life for {had:.0f} s",
                     "its kernel hangs; see the console in result.json")


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(256 * 1024)
    except ConnectionError:  # QEMU was killed
        return b""
