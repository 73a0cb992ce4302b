"""Counts what goes to a guest's network card, on the host: QEMU's filter-dump tells of each frame with 17 bytes on a
named pipe (a pcap record cut off after the first byte; its length is that of the whole frame). What comes from the
guest vm.guard sees anyway."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from contextlib import suppress
from pathlib import Path

PIPE = "frames.pcap"
_FILE_HEADER, _RECORD = 24, struct.Struct("=IIIIx")
_LARGE_PIPE = 1 << 20  # 61,000 frames: more than come in a nap
_NAP = 0.02  # seconds between two looks while frames come, as one wake-up a frame would cost more than the frame


def arguments() -> tuple[str, ...]:
    """QEMU's; the pipe is in its working folder."""
    return ("-object", f"filter-dump,id=meter,netdev=net0,queue=tx,maxlen=1,file={PIPE}")


class Meter:
    """A thread that reads the pipe in ``run_dir``. ``received``: bytes of frames so far. ``close`` ends it."""

    def __init__(self, run_dir: Path) -> None:
        self.received = 0
        path = run_dir / PIPE
        path.unlink(missing_ok=True)  # of an earlier boot
        os.mkfifo(path, 0o600)
        # both ends, before QEMU: so its open waits for nobody, and we never read an end before it has begun
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.fcntl(self._pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), _LARGE_PIPE)
        self._over = threading.Event()
        self._wake, self._woken = os.pipe()
        self._rest, self._skip = b"", _FILE_HEADER
        self._thread = threading.Thread(target=self._run, name="network-meter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Count what is left, and end."""
        self._over.set()
        os.close(self._woken)
        if self._thread.is_alive():
            self._thread.join(5)
        for end in (self._pipe, self._wake):
            os.close(end)

    def _run(self) -> None:
        while not self._over.is_set():
            select.select([self._pipe, self._wake], [], [])
            self._over.wait(_NAP)
            self._drain()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, _LARGE_PIPE):
                self._take(data)

    def _take(self, data: bytes) -> None:
        cut = min(self._skip, len(data))
        self._skip -= cut
        data = self._rest + data[cut:]
        whole = len(data) - len(data) % _RECORD.size
        # four bytes more a frame, its check sum on a wire, as the guard counts
        self.received += sum(length + 4 for _, _, _, length in _RECORD.iter_unpack(data[:whole]))
        self._rest = data[whole:]
