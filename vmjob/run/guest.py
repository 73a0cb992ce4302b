"""The part of the road on which a guest lives: boot → work → its outputs on the output disk."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional

from vmjob.core.errors import BootFailed, GuestError, GuestVanished, KernelPanic, VmjobError
from vmjob.core.interrupt import PAUSE, STOP, Signals, interrupted, walltime_over
from vmjob.core.model import Image
from vmjob.core.node_errors import NetworkLost
from vmjob.core.pace import Pace
from vmjob.job.boot import guest_user
from vmjob.run import compose, guest_watch
from vmjob.run.prepare import prepare
from vmjob.run.result_file import keep_console
from vmjob.run.state import Run
from vmjob.vm.cmdline import cpu_model

if TYPE_CHECKING:
    import asyncio

    from vmjob.guest.session import Session
    from vmjob.vm.machine import Machine
    from vmjob.vm.net import Link

log = logging.getLogger("vmjob.run")

BOOT_ATTEMPTS = 2
GRACE = 20  # seconds from the notice to the end of the machine: half for the program, half for its outputs


class Guest:
    """One guest, in at most two boots; a context manager that ends it on every way out.

    Signals that arrive meanwhile pause, resume or end it. ``stopped`` is the reason when it was cut short
    and its outputs were saved all the same.
    """

    def __init__(self, this: Run, image: Image, folder: Path, signals: Signals) -> None:
        self.this, self.image, self.folder, self.signals = this, image, folder, signals
        self.stopped: Optional[VmjobError] = None
        self._stop_by: Optional[float] = None
        self._reason: Optional[VmjobError] = None  # why it is to end, if it is
        self._wish = 0  # the last signal to pause or resume, not yet obeyed
        self._obeying = False
        self._attached = False
        self._main: Optional[asyncio.Task[None]] = None
        self._stack = ExitStack()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._machine: Optional[Machine] = None
        self._link: Optional[Link] = None
        self._session: Optional[Session] = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        # a guest that failed cannot answer; one whose time was over was asked before
        self._end(ask=error is not None and not isinstance(error, GuestError) and not self.stopped)
        if self.this.results:
            keep_console(self.folder, self.this.results)

    # ------------------------------------------------------------ the three steps

    def boot(self) -> None:
        """Start QEMU and wait for the agent; a guest that never says hello is booted once more."""
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            self.signals.check()
            self.this.attempts = attempt
            try:
                self._start()
                self._await(self._booted())
                return
            except (BootFailed, GuestVanished, KernelPanic, NetworkLost) as failure:
                # before hello nothing of the job has run, so a second try cannot run it twice
                if attempt == BOOT_ATTEMPTS or self.stopped or not self._worth_a_try(failure):
                    raise
                self.this.reporter.note(f"{failure.message}; trying once more")
                self._end()
                self.this.network_lost = ""  # the next one has a network of its own

    def _worth_a_try(self, failure: VmjobError) -> bool:
        """A panic comes again, unless the next attempt offers the guest another CPU."""
        accel, qemu = self.this.accel, self.this.qemu
        assert accel and qemu
        models = {cpu_model(accel.name, qemu.version, attempt) for attempt in (1, BOOT_ATTEMPTS)}
        return not isinstance(failure, KernelPanic) or len(models) > 1

    def work(self) -> None:
        """Hand the job to the agent and wait until its program has ended."""
        self._await(self._worked())

    def finish(self) -> None:
        """Wait until the outputs are on the output disk, and end the machine."""
        self._await(self._finished())
        self._end()

    @property
    def left(self) -> Optional[float]:
        """Seconds that are left of GRACE, where the guest was told that its time ends."""
        return None if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())

    # ------------------------------------------------------------ how

    def _start(self) -> None:
        from vmjob.vm.machine import Machine

        spec, link = prepare(self.this, self.image, self.folder, self._stack)
        self._machine = self._stack.enter_context(Machine(spec, self.folder, link))
        self.this.cpu.began(self._machine.qemu.cpu_now)
        import asyncio  # QEMU is on its way: what is imported from here on costs the run nothing

        self._loop = asyncio.new_event_loop()
        self._stack.callback(self._loop.close)
        self._link = link
        self._loop.add_reader(self.signals.watch(), self._signalled)

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop and self._machine
        self._main = self._loop.create_task(work)
        try:
            self._loop.run_until_complete(self._main)
        except GuestVanished as failure:
            raise self._machine.failure() or failure from None
        except BaseException:
            if self._reason and self._main.cancelled():  # nothing of QEMU was heard yet
                raise self._reason from None
            raise

    async def _booted(self) -> None:
        from vmjob.guest.door import Door
        from vmjob.guest.session import Session

        assert self._machine and self.this.boot
        limit, silence = compose.timeouts(self.this.boot)
        session = Session(self.this.reporter, self.folder / "console.log", silence, Pace(self._machine.qemu.running))
        self._session, self.this.channel = session, session.channel
        self._spawn(guest_watch.walltime(self.this, GRACE, self._over))
        streams = await session.unless_failed(self._machine.streams())
        session.attach(streams["ctrl"], streams["out"], streams["err"], streams["console"])
        self._attached = True
        self._spawn(guest_watch.qemu(self._machine, session))
        self._spawn(guest_watch.disk(self.this, self.folder, session))
        if self._link and self._link.helper:
            self._spawn(guest_watch.network(self.this, self._link.helper, session))
        self._spawn(Door(self._machine.listener("attach"), self._machine.listener("shell"), session).serve())
        await session.booted(limit * self.this.attempts)  # a second try has more time: the node may be busy

    async def _worked(self) -> None:
        from vmjob.guest.channel import State
        from vmjob.guest.script import control_lines

        this, now = self.this, int(time.time())
        assert self._session and this.granted
        user = guest_user(this.job, this.payload.manifest)
        job, more = this.job, dict[str, str]()
        if job.glidein:
            from vmjob.guest.glidein import program

            left = this.granted.walltime and this.clock + this.granted.walltime - time.monotonic()
            this.worker = f"vmjob-{secrets.token_hex(4)}"
            job, more = program(job, this.payload.token, this.granted, this.slot, this.worker, left, now)
        await self._session.send(control_lines(job, user, this.granted, this.slot, now, secrets.token_hex(32), more))
        await self._until(State.EXITED)

    async def _finished(self) -> None:
        from vmjob.guest.channel import State

        assert self._machine
        if await self._until(State.BYE):
            await self._machine.quit()
        else:  # its outputs were cut off
            self.stopped = self.stopped or self._reason

    async def _until(self, state: Any) -> bool:
        """Wait for a state. False: the guest was told that its time ends, and took too long."""
        assert self._session
        return await self._session.reached(state, lambda: self._stop_by)

    # ------------------------------------------------------------ signals

    def _signalled(self) -> None:
        for number in self.signals.notes():
            if number not in STOP:
                self._wish = number
                if not self._obeying:
                    self._spawn(self._obey())
            elif self._reason:
                self._stop_by = time.monotonic()  # asked twice: no more waiting
                if self._session:
                    self._session.wake()
            else:
                self._cut_short(interrupted(number))

    def _over(self, kept: float) -> None:
        if not self._reason:
            self._cut_short(walltime_over(), kept)

    def _cut_short(self, reason: VmjobError, grace: float = GRACE) -> None:
        """Tell the guest that its time ends, in ``grace`` seconds at most, half of which its program has. Before the
        program has started there is nothing to wait for; when it has ended, only its outputs are, and if they come in
        time nothing was cut short."""
        from vmjob.guest.channel import State

        reason.stage = self.this.stages.current
        self._reason, self._stop_by = reason, time.monotonic() + grace
        session = self._session
        if session is None or not self._attached:
            self.stopped = reason
            if self._main:
                self._main.cancel()
            return
        if session.channel.state < State.EXITED:
            self.stopped = reason
        if session.channel.state <= State.READY:
            session.fail(reason)
        elif session.channel.state == State.STARTED:
            if session.paused:
                self._spawn(self._resume())  # who stands still cannot end in order
            self._spawn(session.send(f"shutdown {max(1, int(grace / 2))}\n".encode()))
        session.wake()

    async def _obey(self) -> None:
        """Pause or resume, whichever was asked for last."""
        self._obeying = True
        try:
            while self._wish:
                wish, self._wish = self._wish, 0
                await (self._pause(wish) if wish in PAUSE else self._resume())
        finally:
            self._obeying = False

    async def _pause(self, number: int) -> None:
        if self._machine and self._session and await guest_watch.obeyed(self._machine.pause(), self._session):
            self._session.paused = self.this.paused = True
        if number == signal.SIGTSTP and not self._wish and not self.signals.noted:
            os.kill(os.getpid(), signal.SIGSTOP)  # Ctrl-Z gives the terminal back, as with any program

    async def _resume(self) -> None:
        if self._machine and self._session and await guest_watch.obeyed(self._machine.resume(), self._session):
            self._session.paused = self.this.paused = False

    def _spawn(self, work: Any) -> None:
        assert self._loop
        task = self._loop.create_task(work)
        self._tasks.add(task)  # a loop does not keep its tasks alive
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A watch that dies ends the run by its own name: without it nobody would see what it was there for."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and self._session:
            self._session.fail(self.this.named(error))

    # ------------------------------------------------------------ the end

    async def _ask(self, session: Session) -> None:
        from vmjob.guest.channel import State

        if session.channel.state == State.STARTED:
            await session.send(b"shutdown 3\n")
            with suppress(VmjobError):
                await session.reached(State.BYE, lambda: None)

    def _end(self, ask: bool = False) -> None:
        """Walk the stop ladder and hear the last bytes; twice is fine. ``ask``: the agent first."""
        machine, session, loop = self._machine, self._session, self._loop
        self._machine = self._session = self._main = None
        self._attached = False
        if machine and loop and not loop.is_closed():
            loop.remove_reader(self.signals.watch())
            for task in list(self._tasks):
                task.cancel()
            asked = session if ask and session and session.may_hear else None
            loop.run_until_complete(machine.stop(partial(self._ask, asked) if asked else None))
            if session:
                loop.run_until_complete(session.close())
                self.this.console_tail = session.console_tail
        self._stack.close()
        self.signals.unwatch()
        if machine:
            self.this.paused = False
            self.this.cpu.ended(machine.cpu_seconds)
            self.this.peak_memory = max(self.this.peak_memory, machine.peak_memory)
            self.this.stop = machine.stopped_by
