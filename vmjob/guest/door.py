"""The door of a running guest: a process of the same user on this host may have the guest's terminal, one at a time.

A visitor connects to ``attach.sock`` in the run's private folder and speaks lines::

    shell ROWS COLUMNS TERM        first; 0 rows: no terminal at the visitor's end; 1 column then: the
                                   visitor says when it begins
    size ROWS COLUMNS              its window has changed

and hears ``wait`` (the guest still boots), ``busy`` (somebody else has it), ``over`` (the program has ended), or
``go`` with the descriptor of QEMU's connection to the terminal (SCM_RIGHTS): what is typed and shown does not pass
here. The guest's agent is told over the control channel, and starts nothing before. A visitor who hangs up, however
it came to that, ends the shell; so does the end of the program.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from typing import Optional

from vmjob.guest.channel import State
from vmjob.guest.session import Session

_REQUEST = re.compile(rb"shell [0-9]{1,4} [0-9]{1,4} [A-Za-z0-9][A-Za-z0-9+._-]{0,40}")
_SIZE = re.compile(rb"size [0-9]{1,4} [0-9]{1,4}")
_DRAIN = 64  # pieces of up to 64 KiB
_STEP = 0.25  # seconds between two looks at whether the program still runs, while somebody is there


class Door:
    """``asked``: where visitors knock; ``terminal``: where QEMU knocks. Both listen, and stay the caller's."""

    def __init__(self, asked: socket.socket, terminal: socket.socket, session: Session) -> None:
        self._asked, self._terminal, self._session = asked, terminal, session
        self._line: Optional[socket.socket] = None  # to the terminal
        self._busy = False

    async def serve(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        visits: set[asyncio.Task[None]] = set()
        try:
            while True:
                visitor, _ = await loop.sock_accept(self._asked)
                visit = loop.create_task(self._visit(visitor))
                visits.add(visit)
                visit.add_done_callback(visits.discard)
        finally:
            for visit in visits:
                visit.cancel()
            if self._line:
                self._line.close()

    async def _visit(self, visitor: socket.socket) -> None:
        with visitor, suppress(OSError):  # one who has gone hears no answer
            request = await self._hear(visitor, 10)
            if not request or not _REQUEST.fullmatch(request):
                return
            if self._busy:
                visitor.send(b"busy\n")
                return
            self._busy = True
            try:
                await self._show(visitor, request)
            finally:
                self._busy = False

    async def _show(self, visitor: socket.socket, request: bytes) -> None:
        channel = self._session.channel
        if channel.state < State.STARTED:
            visitor.send(b"wait\n")
        while channel.state < State.STARTED:
            if await self._hear(visitor, _STEP) == b"":
                return
        if channel.state > State.STARTED:
            visitor.send(b"over\n")
            return
        line = await self._fresh_line()
        socket.send_fds(visitor, [b"go\n"], [line.fileno()])
        await self._session.send(request + b"\n")
        while channel.state == State.STARTED:
            said = await self._hear(visitor, _STEP)
            if said == b"":
                await self._session.send(b"shell\n")
                return
            last = said.split(b"\n")[-1] if said else b""
            if _SIZE.fullmatch(last):
                await self._session.send(last + b"\n")

    async def _fresh_line(self) -> socket.socket:
        """The connection to the terminal, with nothing in it from before."""
        if self._line is None:
            self._line, _ = await asyncio.get_running_loop().sock_accept(self._terminal)
        with suppress(BlockingIOError):
            for _ in range(_DRAIN):  # a guest that never stops talking is not waited for
                if not self._line.recv(1 << 16, socket.MSG_DONTWAIT):
                    break
        return self._line

    @staticmethod
    async def _hear(visitor: socket.socket, seconds: float) -> Optional[bytes]:
        """What the visitor said, without the last line break; nothing when it has gone; None: it said nothing."""
        try:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(visitor, 4096), seconds)
        except asyncio.TimeoutError:
            return None
        except ConnectionError:
            return b""
        return data[:-1] if data.endswith(b"\n") else data
