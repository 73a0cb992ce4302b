"""The process of QEMU, its listening sockets, and what the kernel tells of its end. No event loop needed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Optional

from vmjob import machinetext, opened, process
from vmjob.landlock import Fence

log = logging.getLogger("vmjob.machine")

LOG = "qemu.log"
_KILL_SECONDS = 5.0


class QemuProcess:
    """``argv`` started in ``folder`` after the ``sockets`` (name → file name there) were bound; a context
    manager that leaves neither process nor socket. After the end: ``status`` (negative: a signal),
    ``stopped_by`` (``rung`` as it was then, ``itself`` when nobody asked), ``cpu_seconds``, ``peak_memory`` (bytes)."""

    def __init__(self, argv: Sequence[str], folder: Path, sockets: Mapping[str, str],
                 pass_fds: Sequence[int] = (), fence: Optional[Fence] = None) -> None:
        self.argv, self.folder, self.sockets, self.pass_fds, self.fence = argv, folder, sockets, pass_fds, fence
        self.listeners: dict[str, socket.socket] = {}
        self.status: Optional[int] = None
        self.rung = self.stopped_by = ""
        self.cpu_seconds = 0.0
        self.peak_memory = 0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stack = ExitStack()

    def __enter__(self) -> QemuProcess:
        with ExitStack() as stack:
            handle = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, handle)
            for name, path in self.sockets.items():
                # bound before QEMU starts, as it connects at once; by way of a descriptor, as the address
                # of a socket holds 107 bytes and a scratch folder's path may well be longer
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                (self.folder / path).unlink(missing_ok=True)
                listener.bind(f"/proc/self/fd/{handle}/{path}")
                stack.callback((self.folder / path).unlink, missing_ok=True)
                listener.listen(1)
                listener.setblocking(False)
                self.listeners[name] = listener
            with (self.folder / LOG).open("wb") as said:
                self._process = process.spawn(self.argv, cwd=self.folder, stderr=said,
                                              pass_fds=self.pass_fds, fence=self.fence)
            stack.callback(self.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def kill(self) -> None:
        """The last resort, without a loop: kill and collect, within bounded time."""
        if not self.reap() and self._process:
            self.rung = "sigkill"
            self.signal(signal.SIGKILL)
            end = time.monotonic() + _KILL_SECONDS
            while not self.reap():
                if time.monotonic() > end:
                    log.error("QEMU (process %d) hangs in the kernel and cannot be killed", self._process.pid)
                    return
                time.sleep(0.005)

    def signal(self, number: int) -> None:
        if self._process and not self.reap():
            os.kill(self._process.pid, number)

    def reap(self) -> bool:
        """Has QEMU ended? Collects it and what it used."""
        if self.status is not None or self._process is None:
            return True
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.peak_memory = usage.ru_maxrss * 1024
        self.stopped_by = self.rung or "itself"
        log.info("QEMU ended by %s with status %d after %.1f CPU seconds, peak memory %d MiB", self.stopped_by,
                 self.status, self.cpu_seconds, self.peak_memory >> 20)
        return True

    def running(self) -> Optional[int]:
        """Its process number while it runs."""
        return self._process.pid if self._process and self.status is None else None

    def cpu_now(self) -> float:
        """CPU seconds that it has used so far, while it runs; from any thread."""
        if self._process is None or self.status is not None:
            return self.cpu_seconds
        with suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def last_words(self, lines: int = 5) -> list[str]:
        with suppress(OSError), (self.folder / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            return machinetext.lines(opened.named(file.read().decode(errors="replace").strip()))[-lines:]
        return []

    async def ended(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        with suppress(AttributeError, OSError):  # Linux before 5.3 has no pidfd; polling does there
            handle = os.pidfd_open(self._process.pid) if self._process and not self.reap() else -1
            if handle >= 0:
                over = asyncio.Event()
                loop.add_reader(handle, over.set)
                try:
                    await over.wait()
                finally:
                    loop.remove_reader(handle)
                    os.close(handle)
        while not self.reap():
            await asyncio.sleep(0.02)
