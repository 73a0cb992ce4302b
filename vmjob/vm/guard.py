"""Keeps a guest's frames away from the node itself.

Neither of the two NATs holds this alone. QEMU's user-mode network maps 10.0.2.2 to the node's
loopback, and both it and passt (as Debian 12 ships it, also with --no-map-gw) connect to 127.0.0.1 when a
guest simply puts that address on the wire, which any root in a guest can do. So each frame that the
guest sends goes through here first: QEMU's filter-redirector hands it over on one socket and takes on
another what we let pass. Frames towards the guest do not come this way. When the guard dies, no frame
leaves the guest any more.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Optional

ADDRESS, GATEWAY, DNS, PREFIX = "10.0.2.15", "10.0.2.2", "10.0.2.3", 24

_NET = socket.inet_aton(GATEWAY)[:3]
_GATEWAY, _DNS = socket.inet_aton(GATEWAY), socket.inet_aton(DNS)
_BROADCAST = b"\xff\xff\xff\xff"
_TCP, _UDP = 6, 17
_LARGEST = 1 << 17       # of a frame; more is a broken stream
_BACKLOG = 1 << 20       # bytes kept for a slow reader, then frames are dropped, as a network does


def permitted(frame: bytes) -> bool:
    """May this Ethernet frame from the guest go out? Everything that is not plainly ARP or IPv4 from our
    network to somewhere else on the Internet is no, IPv6 too."""
    kind = frame[12:14]
    if kind == b"\x08\x06":
        return True
    if kind != b"\x08\x00" or len(frame) < 34 or frame[14] != 0x45:  # options could carry a source route
        return False
    source, target = frame[26:30], frame[30:34]
    if source[:3] != _NET and source != b"\0\0\0\0":
        return False
    if target[:3] == _NET or target == _BROADCAST:
        return _service(frame, target)
    # 0/8 and 127/8 are the node; 169.254/16 tells a cloud's machine its secrets; from 224 on multicast
    return target[0] not in (0, 127) and target[0] < 224 and target[:2] != b"\xa9\xfe"


def _service(frame: bytes, target: bytes) -> bool:
    """The NAT's own services: DHCP and DNS, nothing else of that address, no fragments."""
    if struct.unpack_from("!H", frame, 20)[0] & 0x3FFF or len(frame) < 38:
        return False
    protocol, port = frame[23], struct.unpack_from("!H", frame, 36)[0]
    if target == _DNS:
        return port == 53 and protocol in (_TCP, _UDP)
    return target in (_GATEWAY, _BROADCAST) and protocol == _UDP and port == 67


class Guard:
    """A thread between two stream sockets of QEMU (each frame after its length, as QEMU's socket network
    has it). ``outdev`` and ``indev`` are QEMU's ends; close them once QEMU has them. ``close`` ends the thread.
    ``sent``: bytes of frames that were let through so far."""

    def __init__(self) -> None:
        self.sent = 0
        self._source, self.outdev = socket.socketpair()
        self._sink, self.indev = socket.socketpair()
        for end in (self._source, self._sink):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._thread = threading.Thread(target=self._run, name="network-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        for end in (self.outdev, self.indev, self._source, self._sink):
            # shut down first: close alone does not wake a thread that sleeps in poll
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(5)
        for end in (self.outdev, self.indev, self._source, self._sink):
            end.close()

    def _run(self) -> None:
        held, out = b"", bytearray()
        while True:
            try:
                select.select([self._source], [self._sink] if out else [], [])
                data = _receive(self._source)
                if data == b"":
                    break
                if data:
                    passed, held = split(held + data)
                    # Never wait for QEMU here: it may itself be waiting for us to read.
                    if len(out) < _BACKLOG:
                        out += passed
                        self.sent += len(passed)  # four bytes more a frame, as on a wire
                if out:
                    del out[:_send(self._sink, out)]
            except (OSError, ValueError):
                break
        self._sink.close()


def _receive(source: socket.socket) -> Optional[bytes]:
    """What has come, None for nothing yet, empty at the end."""
    try:
        return source.recv(1 << 18)
    except BlockingIOError:
        return None


def _send(sink: socket.socket, data: bytearray) -> int:
    try:
        return sink.send(data)
    except BlockingIOError:
        return 0


def split(data: bytes) -> tuple[bytes, bytes]:
    """(the permitted frames with their lengths, the incomplete rest). Raises ValueError on a broken stream."""
    good: list[bytes] = []
    at, end = 0, len(data)
    while end - at >= 4:
        length = int.from_bytes(data[at:at + 4], "big")
        if length > _LARGEST:
            raise ValueError(f"a frame of {length} bytes")
        if end - at - 4 < length:
            break
        if permitted(data[at + 4:at + 4 + length]):
            good.append(data[at:at + 4 + length])
        at += 4 + length
    return b"".join(good), data[at:]
