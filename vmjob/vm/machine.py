"""A running QEMU: started, spoken to, stopped in order, and gone on every way out.

``with Machine(spec, folder, link)`` binds the sockets, then starts QEMU in ``folder`` (a private one that
exists). The async methods belong to one event loop, made after QEMU was started: importing asyncio and
qemu.qmp then overlaps with the boot.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from vmjob import fences, opened
from vmjob.errors import QemuFailed, VmjobError
from vmjob.model import Boot, VmSpec
from vmjob.node_errors import under_guest
from vmjob.vm.cmdline import SOCKETS, command_line
from vmjob.vm.qemu import QemuProcess

if TYPE_CHECKING:
    import asyncio

    from qemu.qmp import QMPClient

    from vmjob.vm.net import Link

    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

log = logging.getLogger("vmjob.machine")

STREAMS = ("ctrl", "out", "err", "console")
# Seconds each rung of the stop ladder may take.
RUNGS = {"agent": 10.0, "acpi": 5.0, "quit": 3.0, "sigterm": 3.0, "sigkill": 5.0}
CONNECTED = 30.0  # seconds in which QEMU must have connected all sockets and greeted: it does so before it boots
_ANSWER = 10.0  # for its reply to a command
_MUTE = "the node is overloaded, or its QEMU is broken: see vmjob doctor; another node may do"
_BUFFER = 1 << 20


class Machine:
    """The machine of ``spec`` in ``folder``. After its end: ``stopped_by`` (``itself`` or the rung of RUNGS that
    was needed), ``cpu_seconds`` and ``peak_memory`` (bytes) of QEMU. ``link`` is what VmSpec.netdev was made from."""

    def __init__(self, spec: VmSpec, folder: Path, link: Optional[Link] = None) -> None:
        self.spec, self.folder, self.link = spec, folder, link
        sockets = {name: f"{name}.sock" for name in (*SOCKETS, "attach")}
        files = opened.numbers(*fences.files_of(spec))
        self.qemu = QemuProcess(command_line(spec), folder, sockets, [*(link.fds if link else ()), *files],
                                fences.of_machine(spec, folder))
        self.events: list[dict[str, Any]] = []
        self._qmp: Optional[QMPClient] = None
        self._gone: Optional[asyncio.Task[None]] = None
        self._listening: Optional[asyncio.Task[None]] = None
        self._disk_error: Optional[asyncio.Future[VmjobError]] = None

    def __enter__(self) -> Machine:
        self.qemu.__enter__()
        if self.link:
            self.link.handed_over()
        return self

    def __exit__(self, *exc: object) -> None:
        self.qemu.__exit__(*exc)

    @property
    def stopped_by(self) -> str:
        return self.qemu.stopped_by

    @property
    def cpu_seconds(self) -> float:
        return self.qemu.cpu_seconds

    @property
    def peak_memory(self) -> int:
        return self.qemu.peak_memory

    def listener(self, name: str) -> socket.socket:
        """One of the listening sockets: where QEMU knocks, or ``attach``, where a visitor does."""
        return self.qemu.listeners[name]

    async def streams(self) -> dict[str, Streams]:
        """The four streams of the guest (see STREAMS), each as (reader, writer); the caller closes the
        writers. The control connection is made as well. Raises QemuFailed when QEMU dies meanwhile, or says nothing
        for CONNECTED seconds."""
        import asyncio

        try:
            return dict(zip(STREAMS, await asyncio.wait_for(self._connect_all(), CONNECTED)))
        except asyncio.TimeoutError as silent:
            raise QemuFailed(f"QEMU said nothing on its control socket for {CONNECTED:.0f} s", _MUTE) from silent

    async def _connect_all(self) -> list[Streams]:
        import asyncio

        control = asyncio.ensure_future(self._connect_qmp())
        try:
            pairs = asyncio.gather(*map(self.accept, STREAMS))
            return (await asyncio.gather(pairs, control))[0]
        finally:
            control.cancel()

    async def accept(self, name: str) -> Streams:
        """One of the streams. Raises QemuFailed."""
        import asyncio

        return await asyncio.open_connection(sock=await self._connection(name), limit=_BUFFER)

    async def _connection(self, name: str) -> socket.socket:
        import asyncio

        gone = self._exit_task()
        loop = asyncio.get_running_loop()
        coming = asyncio.ensure_future(loop.sock_accept(self.qemu.listeners[name]))
        await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            coming.cancel()
            raise self.failure() or QemuFailed("QEMU ended before the guest ran", "see vmjob doctor")
        return coming.result()[0]

    async def _connect_qmp(self) -> None:
        import asyncio

        connection = await self._connection("qmp")
        from qemu.qmp import QMPClient, QMPError

        # its log repeats as errors what failure() tells in words
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self._disk_error = asyncio.get_running_loop().create_future()
        qmp = QMPClient("vmjob")
        try:
            await qmp.connect(connection)
        except (QMPError, OSError, AssertionError) as error:  # qemu.qmp asserts that QEMU did not greet and hang up
            why = str(error) or "it hung up"
            raise self.failure() or QemuFailed(f"QEMU's control socket failed: {why}", "see vmjob doctor") from error
        except asyncio.CancelledError:  # nobody waits for it any longer
            connection.close()
            raise
        self._qmp = qmp
        self._listening = asyncio.ensure_future(self._listen(qmp))

    # ------------------------------------------------------------ what it tells

    async def _listen(self, qmp: QMPClient) -> None:
        async for event in qmp.events:
            self._take(dict(event))

    def _take(self, event: dict[str, Any]) -> None:
        data: dict[str, Any] = event["data"] if isinstance(event.get("data"), dict) else {}  # a hostile QEMU's
        self.events.append({**event, "data": data})
        del self.events[:-1000]  # a guest can make them
        log.debug("QEMU tells: %s %s", event.get("event"), data)
        if event.get("event") == "BLOCK_IO_ERROR" and data.get("action") == "stop" \
                and self._disk_error and not self._disk_error.done():
            self._disk_error.set_result(under_guest(self.folder, data))

    async def broken(self) -> VmjobError:
        """Waits until the machine breaks: its disk is full (the guest stands still then) or QEMU fails.
        For a guest that powers off by itself this never returns; its streams end."""
        import asyncio

        waiting: set[asyncio.Future[Any]] = {self._exit_task()}
        if self._disk_error:
            waiting.add(self._disk_error)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        failure = self.failure()
        if failure is None:
            await asyncio.get_running_loop().create_future()
        assert failure
        return failure

    async def wait(self, seconds: Optional[float] = None) -> bool:
        """Has QEMU ended within ``seconds`` (None: however long it takes)?"""
        import asyncio

        await asyncio.wait({self._exit_task()}, timeout=seconds)
        return self.qemu.reap()

    def failure(self) -> Optional[VmjobError]:
        """Why the machine broke, by what QEMU said or how it ended; None when it did not break."""
        if self._disk_error and self._disk_error.done() and not self._disk_error.cancelled():
            return self._disk_error.result()
        end = time.monotonic() + 0.5  # its sockets close a moment before it has ended
        while not self.qemu.reap():
            if time.monotonic() > end:
                return None
            time.sleep(0.002)
        if self.qemu.rung:
            return None
        if not self.qemu.status:
            if any(one.get("data", {}).get("reason") == "host-signal" for one in self.events):
                return QemuFailed("somebody on the node ended QEMU by a signal", "another try may do")
            return None
        said = self.qemu.last_words()
        if self.qemu.status < 0:
            number = signal.Signals(-self.qemu.status).name
            hint = "the node's memory may have run out (see its kernel log), or somebody killed it"
            return QemuFailed(f"QEMU was killed by {number}" + (f": {said[-1]}" if said else ""), hint)
        return QemuFailed(f"QEMU ended with status {self.qemu.status}: " + (" / ".join(said) or "it said nothing"),
                          "vmjob plan shows its command line, vmjob doctor what this host lacks")

    def _exit_task(self) -> asyncio.Task[None]:
        import asyncio

        if self._gone is None:
            self._gone = asyncio.ensure_future(self.qemu.ended())
        return self._gone

    # ------------------------------------------------------------ what it is told

    async def pause(self) -> None:
        """Stop the guest's CPUs; nothing happens when QEMU has ended. Raises QemuFailed when it does not answer."""
        await self._command("stop")

    async def resume(self) -> None:
        """Let the guest's CPUs run on; as ``pause``."""
        await self._command("cont")

    async def _command(self, command: str) -> None:
        if not await self._execute(command, _ANSWER) and self._qmp and not self.qemu.reap() and not self._closing():
            raise QemuFailed(f"QEMU did not answer '{command}' on its control socket within {_ANSWER:.0f} s",
                             _MUTE)

    async def quit(self) -> None:
        """End QEMU at once, when the guest has said and written all. ``stop`` still comes after it.

        By signal: a command of the control protocol that meets a guest's own power-off makes QEMU (7.2) hang
        in its clean-up for ever. What the guest wrote is in its files, however QEMU ends."""
        if not self.qemu.reap():
            self.qemu.rung = "quit"
            self.qemu.signal(signal.SIGTERM)
            await self.wait(RUNGS["quit"])

    async def _execute(self, command: str, seconds: float = 5.0) -> bool:
        import asyncio

        if self._qmp is None or self.qemu.reap() or self._closing():
            return False
        from qemu.qmp import QMPError

        with suppress(QMPError, EOFError, OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._qmp.execute(command), seconds)
            return True
        return False

    def _closing(self) -> bool:
        """QEMU is on its way out; a command now might make it hang (see ``quit``)."""
        return any(event.get("event") == "SHUTDOWN" for event in self.events)

    async def stop(self, ask_agent: Optional[Callable[[], Awaitable[None]]] = None) -> str:
        """The ladder: agent asked → ACPI → QMP quit → SIGTERM → SIGKILL, each for a bounded time. Returns the
        rung that was needed (``itself``: none). Twice is fine."""
        import asyncio

        async def ask() -> bool:
            if ask_agent:
                with suppress(OSError, asyncio.TimeoutError):
                    await asyncio.wait_for(ask_agent(), RUNGS["agent"])
            return ask_agent is not None

        async def send(number: int) -> bool:
            self.qemu.signal(number)
            return True

        if self._closing():
            await self.wait(RUNGS["quit"])
        frozen = self._disk_error is not None and self._disk_error.done()
        steps: list[tuple[str, Callable[[], Awaitable[bool]]]] = []
        if not frozen:  # nobody in there can answer
            steps += [("agent", ask)]
            # our own init does not listen to the power button; whoever else may, is asked
            steps += [("acpi", lambda: self._execute("system_powerdown"))] if self.spec.boot is not Boot.JOB else []
        steps += [("quit", lambda: self._execute("quit", RUNGS["quit"])), ("sigterm", lambda: send(signal.SIGTERM)),
                  ("sigkill", lambda: send(signal.SIGKILL))]
        for rung, step in steps:
            if self.qemu.reap():
                break
            self.qemu.rung = rung
            if await step():
                await self.wait(RUNGS[rung])
        await self._hang_up()
        return self.stopped_by

    async def _hang_up(self) -> None:
        import asyncio

        qmp, self._qmp = self._qmp, None
        if qmp:
            with suppress(Exception):  # it repeats whatever ended the connection, which is over anyway
                await asyncio.wait_for(qmp.disconnect(), RUNGS["quit"])
        tasks = [task for task in (self._listening, self._gone) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening = self._gone = None
