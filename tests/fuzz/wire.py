"""Peers that are spoken to over a socket, and say what they like: LDAP, HTTP, Chirp, NBD and QEMU's control protocol.

A real client, a real socket, and a peer who says all the input at once and then hangs up."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.target import target
from vmjob import chirp as chirping
from vmjob.errors import ChirpFailed, HostError, ImageCorrupt, ImageMissing, QemuFailed
from vmjob.image import nbd
from vmjob.site_errors import SitesRefused, SitesUnreachable
from vmjob.sites import ldap
from vmjob.sites.sources import Source
from vmjob.stage import http
from vmjob.stage.flow import Failed
from vmjob.stage.patience import Patience
from vmjob.stage.web import Web
from vmjob.vm.machine import Machine

_TURN = b"<turn>"


@contextmanager
def _stranger(data: bytes, turns: bool = False) -> Iterator[int]:
    """A port of this machine where visitors hear ``data``, with ``turns`` a part of it for each thing that they say; no
    name leads anywhere else meanwhile."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        visitors = stack.enter_context(ExitStack())

        def answer(visitor: socket.socket) -> None:
            visitor.settimeout(0.05)  # a client that waits for more hears the end instead
            with suppress(TimeoutError, socket.timeout):
                for part in data.split(_TURN) if turns else [data]:
                    if turns and not visitor.recv(1 << 16):
                        break
                    visitor.sendall(part)  # all inputs fit into the buffers between us
            visitor.shutdown(socket.SHUT_WR)

        def serve() -> None:
            while True:
                try:
                    visitor = visitors.enter_context(listener.accept()[0])  # open to the end: it may be read late
                except OSError:  # nobody listens any more
                    return
                with suppress(OSError):  # one who has gone
                    answer(visitor)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        real = socket.getaddrinfo

        def lookup(host: Any, service: Any, *args: Any, **more: Any) -> Any:
            if (host, str(service)) != ("127.0.0.1", str(port)):
                raise socket.gaierror("nothing leaves this machine")
            return real(host, service, *args, **more)

        try:
            with mock.patch.object(socket, "getaddrinfo", lookup):
                yield port
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            thread.join(10)


# ---------------------------------------------------------------- a BDII


def _ber(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([tag]) + (bytes([len(body)]) if len(body) < 128 else b"\x82" + struct.pack(">H", len(body))) + body


def _result(tag: int, code: int = 0) -> bytes:
    return _ber(tag, _ber(10, bytes([code])), _ber(4), _ber(4))


def _directories() -> list[bytes]:
    dn = b"GLUE2ServiceID=s,GLUE2GroupID=resource,o=glue"

    def found(**values: bytes) -> bytes:
        return _ber(0x64, _ber(4, dn), _ber(0x30, *(
            _ber(0x30, _ber(4, key.encode()), _ber(0x31, _ber(4, value))) for key, value in values.items())))

    entry = found(objectClass=b"GLUE2ComputingService", GLUE2ServiceID=b"s", GLUE2EntityOtherInfo=b"VmjobSite=S")
    found_all = _ber(0x30, _ber(2, b"\2"), entry) + _ber(0x30, _ber(2, b"\2"), _result(0x65))
    return [_TURN.join([_ber(0x30, _ber(2, b"\1"), _result(0x61)), found_all, found_all.replace(b"\2\1\2", b"\2\1\3")])]


@target(_directories, SitesRefused, SitesUnreachable)
def bdii(data: bytes, place: Path) -> None:
    """A BDII's answers in LDAP (BER)."""
    from ldap3.core.server import Server

    with _stranger(data, turns=True) as port, mock.patch.object(Server, "_message_counter", 0):
        ldap.ask(Source(f"ldap://127.0.0.1:{port}/o=glue", "ldap", "127.0.0.1", port, "o=glue", timeout=2))


# ---------------------------------------------------------------- a web server

_PATIENCE = Patience(connect=2, stall=2, pause=0.01, longest=0.01, tries=1)


def _web_answers() -> list[bytes]:
    return [b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/5\r\n"
            b"ETag: \"a\"\r\n\r\nxyz",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nLast-Modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n\r\nabcde",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"]


@target(_web_answers, Failed)
def web_server(data: bytes, place: Path) -> None:
    """A web server's answer to a request for a part of a file: no more than was asked for is taken."""
    with _stranger(data) as port, mock.patch.dict(os.environ, clear=True):
        transfer = http.HttpTransfer(Web(_PATIENCE), lambda: f"http://127.0.0.1:{port}/x", 2, 5, http.Seen())
        try:
            taken = 0
            while piece := transfer.read(1 << 16):
                taken += len(piece)
            assert taken - transfer.behind == 3, (taken, transfer.behind)
        finally:
            transfer.close()


def _configurations() -> list[bytes]:
    return [b'{"director_endpoint": "https://director.example.org:8443/"}', b'{"director_endpoint": "d.example.org"}']


@target(_configurations, Failed)
def federation(data: bytes, place: Path) -> None:
    """What a federation of Pelican says of its director."""
    address = http.director_in(data, "h.example.org")
    assert address.startswith("https://") and address.isascii() and address.isprintable(), address


# ---------------------------------------------------------------- HTCondor's starter


def _starters() -> list[bytes]:
    return [b"\x00" + _TURN.join([b"0\n", b"3\n1 2 3\n", b"5\nabcde", b"0\n"]),
            b"\x01" + _TURN.join([b"0\n", b'9\n"a value"']), b"\x02" + _TURN.join([b"0\n", b"0\n"])]


@target(_starters, ChirpFailed, ImageMissing)
def chirp(data: bytes, place: Path) -> None:
    """The starter's answers in Chirp to one call, which the first byte says: no more bytes come than were asked for."""
    call, data = data[:1], data[1:]
    with _stranger(data, turns=True) as port, mock.patch.object(chirping, "PATIENCE", -1.0), \
            mock.patch.object(chirping, "_TIMEOUT", 2.0):
        starter = chirping.Chirp("127.0.0.1", port, "cookie")
        try:
            if call == b"\1":
                starter.get("Iwd")
            elif call == b"\2":
                with suppress(ConnectionError):  # which counts how often
                    starter.set("X", "a b")
            else:
                assert len(starter.read("/x", 5)) <= 5
        finally:
            starter._drop()


# ---------------------------------------------------------------- qemu-nbd


def _exports() -> list[bytes]:
    hello = b"NBDMAGICIHAVEOPT" + b"\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 12) + b"\0\0"
    hello += struct.pack(">QH", 1 << 20, 1) + struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
    return [hello + b"".join(struct.pack(">IIQ", 0x67446698, 0, n) + b"d" * 512 for n in range(2))]


@target(_exports, HostError, ImageCorrupt)
def disk_server(data: bytes, place: Path) -> None:
    """A disk served by qemu-nbd: as many bytes as were asked for, or none."""
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.settimeout(5)
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        reader = nbd.Reader(ours, "x")
        assert [len(one) for one in reader.reads([(0, 512), (512, 512)])] == [512, 512]


# ---------------------------------------------------------------- QEMU


class _Ended:
    """The process behind the control socket: there until it is asked for, as one that has just died."""

    rung = ""
    status = 0

    def reap(self) -> bool:
        return True

    def last_words(self) -> list[str]:
        return []


class _Machine(Machine):
    """A machine whose QEMU is whoever holds the other end of ``line``."""

    def __init__(self, line: socket.socket, folder: Path) -> None:
        self.line, self.folder = line, folder
        self.qemu: Any = _Ended()
        self.events: list[dict[str, Any]] = []
        self._qmp = self._gone = self._listening = self._disk_error = None

    async def _connection(self, name: str) -> socket.socket:
        return self.line


def _controls() -> list[bytes]:
    greeting = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, ' \
        b'"capabilities": []}}\r\n{"return": {}}\r\n'
    stamp = b'"timestamp": {"seconds": 1, "microseconds": 2}'
    return [greeting + b'{"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "operation": "write", "nospace": '
            b'true, "reason": "No space left"}, ' + stamp + b'}\r\n{"event": "SHUTDOWN", "data": {"guest": true, '
            b'"reason": "guest-shutdown"}, ' + stamp + b"}\r\n", greeting + b'{"event": "STOP", ' + stamp + b"}\r\n"]


@target(_controls, QemuFailed)
def qmp(data: bytes, place: Path) -> None:
    """QEMU's control protocol, of a QEMU that a guest may have taken over."""
    asyncio.run(_control(data, place))


async def _control(data: bytes, place: Path) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        peer.sendall(data)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the library's own tasks, which we end
        machine = _Machine(ours, place)
        connecting = asyncio.ensure_future(machine._connect_qmp())
        try:
            for _ in range(200):  # until all that came is taken
                await asyncio.sleep(0)
            peer.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(connecting, 5)
            heard = machine._listening
            assert not (heard and heard.done() and not heard.cancelled() and heard.exception()), heard
            machine.failure()
            machine._closing()
        finally:
            await machine._hang_up()
