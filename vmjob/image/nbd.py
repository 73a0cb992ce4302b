"""Reading disks of any format: qemu-nbd serves them read-only on a private socket, and this is its client.

The protocol: "The NBD protocol" (doc/proto.md of the NBD project), fixed newstyle handshake, simple replies.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, Optional

from vmjob import blockdev, opened, process
from vmjob.errors import HostError, ImageCorrupt
from vmjob.fences import fence
from vmjob.machinetext import last_line

MAX_READ = 2**20  # bytes that one request asks for
_DEPTH = 8  # requests on their way: qemu-nbd unpacks compressed clusters in several threads
_PATIENCE = 120  # seconds without a byte
_HELLO, _OPTION, _REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST, _SIMPLE = 0x25609513, 0x67446698
_GO, _ACK, _INFO = 7, 1, 3
_READ, _DISCONNECT = 0, 2
_HINT = "the disk may be damaged: vmjob image inspect, qemu-img check"


class Reader:
    """A disk of ``size`` bytes that is served at the other end of ``connection``. Raises ImageCorrupt where the disk
    cannot be read, HostError where the server ends or is silent; after either it is of no use any more."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket, self._name = connection, name
        self.size = self._handshake()

    def read(self, offset: int, length: int) -> bytes:
        """All of it, at most MAX_READ bytes; what is behind the end of the disk reads as zeros."""
        return next(self.reads([(offset, length)]))

    def reads(self, pieces: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each (offset, length) in turn, several asked for ahead. Use it up before the next call."""
        waiting: deque[tuple[int, int, int]] = deque()  # handle, bytes to come, length
        ready: dict[int, bytes] = {}
        for handle, (offset, length) in enumerate(pieces):
            some = max(0, min(length, self.size - offset))
            if some:
                self._send(struct.pack(">IHHQQI", _REQUEST, 0, _READ, handle, offset, some))
            else:
                ready[handle] = b""
            waiting.append((handle, some, length))
            if len(waiting) >= _DEPTH:
                yield self._next(waiting, ready)
        while waiting:
            yield self._next(waiting, ready)

    def _next(self, waiting: deque[tuple[int, int, int]], ready: dict[int, bytes]) -> bytes:
        handle, _, length = waiting[0]
        lengths = {number: some for number, some, _ in waiting}
        while handle not in ready:
            magic, error, which = struct.unpack(">IIQ", self._receive(16))
            if magic != _SIMPLE or which not in lengths or which in ready:
                self._broken("an answer that is none")
            if error:
                raise ImageCorrupt(f"{self._name} cannot be read: {os.strerror(min(error, 4095))}", _HINT)
            ready[which] = self._receive(lengths[which])
        waiting.popleft()
        data = ready.pop(handle)
        return data if len(data) == length else data + bytes(length - len(data))

    def disconnect(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))

    # -------------------------------------------------------------- details

    def _handshake(self) -> int:
        if self._receive(16) != _HELLO + _OPTION:
            self._broken("another protocol")
        self._receive(2)
        go = struct.pack(">IH", 0, 0)  # the export without a name, and no information asked for
        self._send(struct.pack(">I8sII", 3, _OPTION, _GO, len(go)) + go)
        size: Optional[int] = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY or length > 65536:
                self._broken("an answer that is none")
            data = self._receive(length)
            if kind == _INFO and len(data) == 12 and data[:2] == b"\0\0":
                size = struct.unpack_from(">Q", data, 2)[0]
            elif kind == _ACK and size is not None:
                return size
            elif kind != _INFO:
                self._broken(f"a refusal ({kind:#x})")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except socket.timeout:
            self._broken("silence")
        except ConnectionError:  # a bare BrokenPipeError is our own closed output elsewhere
            self._broken("the end of the connection")

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            try:
                count = self._socket.recv_into(view[done:])
            except socket.timeout:
                self._broken("silence")
            except ConnectionError:
                count = 0
            if not count:
                self._broken("the end of the connection")
            done += count
        return bytes(data)

    def _broken(self, what: str) -> NoReturn:
        raise HostError(f"{self._name}: qemu-nbd answered with {what}", _HINT)


@contextlib.contextmanager
def serve(chain: Sequence[tuple[str, str]], spare: Optional[Path] = None) -> Iterator[Reader]:
    """Read the ``chain`` of disks (blockdev.stacked; absolute paths, or places of open files) until the end of the with
    block. ``spare``: a folder for the socket's own. Main thread only. Raises CommandMissing, HostError, and as
    Reader."""
    tool = process.require("qemu-nbd", "qemu-utils")
    paths = [path for path, _ in chain]
    name = opened.named(paths[-1])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmjob-nbd-", dir=spare)))  # 0700
        said = stack.enter_context((folder / "said").open("w+b"))
        # a socket's path must be short, and for qemu-nbd absolute: as seen through the open folder it is both
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, place)
        path = f"/proc/self/fd/{place}/nbd.sock"
        child = process.spawn([tool, "--read-only", f"--socket={path}", blockdev.file_name(chain)],
                              pass_fds=[place, *opened.numbers(*paths)], stderr=said,
                              fence=fence(tool, paths, [str(folder)]))
        stack.callback(_end, child)
        try:
            connection = stack.enter_context(_connected(path, child))
            connection.settimeout(_PATIENCE)
            reader = Reader(connection, name)
        except (HostError, OSError) as failed:  # it listens before it has opened the disk
            _end(child)
            said.seek(0)
            last = opened.named(last_line(said.read().decode(errors="replace"), str(failed)))
            raise HostError(f"{name}: qemu-nbd cannot open it: {last}", _HINT) from failed
        stack.callback(reader.disconnect)
        yield reader


def _connected(path: str, child: subprocess.Popen[bytes]) -> socket.socket:
    """Raises OSError where the server ends, or does not make its socket."""
    end = time.monotonic() + _PATIENCE
    while child.poll() is None and time.monotonic() < end:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
            time.sleep(0.005)
    raise TimeoutError("it ended, or did not begin")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
