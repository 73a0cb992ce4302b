"""Looking into a running guest from its host: the guest's shell (by guest.door) and its console."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

from vmjob.core.errors import FolderBusy, GuestError, SlotError

LEAVE = b"\x1d"  # Ctrl-]
_BEGIN = b": vmjob begins\n"  # to an agent that does not wait for it, as to any shell, it says nothing
_CTRL_D = b"\x04"  # the end of input, as a terminal is told
_ANSWER = 30.0  # seconds in which a guest whose program runs starts a shell, also an emulated one
_STEP = 0.5  # seconds between two looks at things that do not announce themselves
_OUT_CAP, _IN_CAP = 64 * 2**20, 1 << 16


class Marks:
    """Cuts a shell's own output out of what the terminal shows: it lies between the agent's marks. No I/O here."""

    _MARK = re.compile(rb"\033\]7777;(?:ready|exit ([0-9]{1,3}))\007")
    _START, _LONGEST = b"\033]7777;", 18

    def __init__(self) -> None:
        self.ready = False
        self.status: Optional[int] = None  # of the shell, when it has ended
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take more of what came; returns the shell's part of it, as soon as it is sure to be no mark."""
        data, self._rest, own = self._rest + data, b"", b""
        while self.status is None:
            mark = self._MARK.search(data)
            if not mark:
                cut = data.rfind(b"\033")
                tail = data[cut:] if cut >= 0 else b""
                if not tail or len(tail) >= self._LONGEST or not self._START.startswith(tail[:len(self._START)]):
                    cut = len(data)  # else more of a mark may be on its way
                self._rest = data[cut:]
                return own + data[:cut] if self.ready else b""
            if self.ready:
                own += data[:mark.start()]
            if mark[1] is None:
                self.ready = True
            elif self.ready:
                self.status = int(mark[1])
            data = data[mark.end():]
        return own


def shell(folder: Path, note: Callable[[str], None], stdin: int = 0, stdout: int = 1) -> int:
    """Be at the shell of the guest that runs in ``folder`` until it ends; returns its exit status (0 after Ctrl-]).

    On a terminal (``stdin`` and ``stdout`` both) it is the guest's terminal, put back as it was on every way out.
    Else what comes from ``stdin`` are commands, and what they print goes to ``stdout``. ``note`` is called with
    what a person should know. Raises SlotError, FolderBusy when somebody else has the shell, or GuestError.
    """
    interactive = os.isatty(stdin) and os.isatty(stdout)
    rows, columns = _size(stdout) if interactive else (0, 1)  # no rows, one column: we say when we begin
    kind = re.sub(r"[^A-Za-z0-9+._-]", "", os.environ.get("TERM", ""))[:40].lstrip("+._-") or "dumb"
    with ExitStack() as stack:
        door = stack.enter_context(_knock(folder))
        with suppress(ConnectionError):  # the answer tells
            door.sendall(f"shell {rows} {columns} {kind}\n".encode())
        line = stack.enter_context(_answer(door, note))
        visit = _Visit(door, line, stdin, stdout, (rows, columns) if interactive else None)
        visit.await_ready()
        if interactive:
            note("in the guest; Ctrl-] leaves")
            stack.enter_context(_raw(stdin))
        return visit.talk()


def follow_console(folder: Path, stdout: int = 1) -> None:
    """Write the console of the guest in ``folder``, from its first line on, until the run ends or nobody reads."""
    path, gone = folder / "console.log", select.poll()
    gone.register(stdout, 0)
    while not path.exists():
        if not folder.exists() or gone.poll(_STEP * 1000):
            return
    with path.open("rb", buffering=0) as log:
        while True:
            data = log.read(1 << 16)
            if data:
                _write_all(stdout, data)
                continue
            state = os.fstat(log.fileno())
            if state.st_size < log.tell():  # the second try of a boot begins it again
                log.seek(0)
            elif not state.st_nlink or gone.poll(_STEP * 500):
                return


# ---------------------------------------------------------------- the door


def _knock(folder: Path) -> socket.socket:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        door = socket.socket(socket.AF_UNIX)
        try:  # by way of a descriptor, as a socket's address is short
            door.connect(f"/proc/self/fd/{handle}/attach.sock")
        except OSError as refused:
            door.close()
            raise SlotError(f"{folder}: no guest runs there (yet): {refused.strerror}",
                            "wait until it boots; a run of an older vmjob has no shell") from refused
        return door
    finally:
        os.close(handle)


def _answer(door: socket.socket, note: Callable[[str], None]) -> socket.socket:
    """The connection to the guest's terminal, when it has booted."""
    while True:
        try:
            data, handles, _, _ = socket.recv_fds(door, 64, 1)
        except ConnectionError:
            raise _ended() from None
        if handles:
            return socket.socket(fileno=handles[0])
        if data == b"wait\n":
            note("the guest still boots")
        elif data == b"busy\n":
            raise FolderBusy("somebody else has the shell of this guest", "wait until they leave it")
        else:
            raise _ended()


def _ended() -> SlotError:
    return SlotError("the job's program has ended, and with it the shell",
                     "what is left of the job is in its results")


class _Visit:
    def __init__(self, door: socket.socket, line: socket.socket, stdin: int, stdout: int,
                 size: Optional[tuple[int, int]]) -> None:
        self.door, self.line, self.stdin, self.stdout, self.size = door, line, stdin, stdout, size
        self.marks = Marks()
        self.to_guest, self.to_out = b"", bytearray()
        self.open, self.over, self.left = True, False, False
        self.last = b"\n"  # what was typed last: an end of input counts at the start of a line only

    def await_ready(self) -> None:
        """Nothing is typed before the shell is there: nobody would read it."""
        deadline = time.monotonic() + _ANSWER
        while not self.marks.ready:
            if time.monotonic() > deadline:
                raise GuestError("the guest gives no shell", "its image has an agent of an older vmjob, or a kernel "
                                 "without the console hvc0 (virtio_console): rebuild the image")
            self._turn(reading=False)
            if self.over and not self.marks.ready:
                raise _ended()

    def talk(self) -> int:
        self.to_guest = b"" if self.size else _BEGIN
        while self.marks.status is None and not self.over and not self.left:
            self._turn(reading=True)
        while self.to_out:  # what was shown is worth more than a quick end
            self._put_out()
        if self.marks.status is None and not self.left:
            raise _ended()
        return self.marks.status or 0

    def _turn(self, reading: bool) -> None:
        # what nobody takes from QEMU is lost, so it is read here however slow the reader behind us is
        sources: list[Any] = [self.door, *([self.line] if len(self.to_out) < _OUT_CAP else [])]
        if reading and self.open and len(self.to_guest) < _IN_CAP:
            sources.append(self.stdin)
        sinks: list[Any] = [*([self.line] if self.to_guest else []), *([self.stdout] if self.to_out else [])]
        readable, writable, _ = select.select(sources, sinks, [], _STEP)
        if self.line in readable:
            self._take()
        if self.door in readable:
            self.over = True
            self._take()  # its last words
        if self.stdin in readable:
            self._read_in()
        if self.line in writable:
            with suppress(BlockingIOError, ConnectionError):
                self.to_guest = self.to_guest[self.line.send(self.to_guest):]
        if self.stdout in writable:
            self._put_out()
        if not readable:
            self._idle(nothing=not writable)

    def _take(self) -> None:
        try:
            data = self.line.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:  # QEMU ended with something of ours unread
            data = b""
        self.over = self.over or not data
        self.to_out += self.marks.feed(data)

    def _read_in(self) -> None:
        data = os.read(self.stdin, 1 << 14)
        if self.size is not None and (LEAVE in data or not data):
            data, self.left = data.partition(LEAVE)[0], True
        self.to_guest += data
        self.last = data[-1:] or self.last
        if not data:
            self.open = False
            self.to_guest += _CTRL_D if self.last == b"\n" else _CTRL_D * 2

    def _put_out(self) -> None:
        del self.to_out[:os.write(self.stdout, self.to_out[:4096])]

    def _idle(self, nothing: bool) -> None:
        if nothing and not self.open:  # for a whole step: one a step, or it would end the shell of who comes next
            self.to_guest = _CTRL_D  # a program there may have taken the one before for itself
        if self.size is not None and self.size != (now := _size(self.stdout)):
            self.size = now
            with suppress(OSError):
                self.door.send(f"size {now[0]} {now[1]}\n".encode())


# ---------------------------------------------------------------- the terminal here


def _size(handle: int) -> tuple[int, int]:
    with suppress(OSError):
        found = os.get_terminal_size(handle)
        if found.lines and found.columns:
            return min(found.lines, 9999), min(found.columns, 9999)
    return 24, 80


@contextmanager
def _raw(handle: int) -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    import termios
    import tty

    before = termios.tcgetattr(handle)
    try:
        tty.setraw(handle, termios.TCSADRAIN)  # what was typed ahead counts
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data):]
