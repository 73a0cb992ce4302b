"""Which frames of a guest go out, and the stream they travel in."""

from __future__ import annotations

import socket
import struct

import pytest

from vmjob.vm.guard import Guard, permitted, split

pytestmark = pytest.mark.unit

TCP, UDP, ICMP = 6, 17, 1


def frame(target: str, port: int = 80, protocol: int = TCP, source: str = "10.0.2.15", kind: int = 0x0800,
          version: int = 0x45, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", version, 0, 28, 1, fragment, 64, protocol, 0)
    return (b"\xff" * 6 + b"\x52\x54\0\x12\x34\x56" + struct.pack("!H", kind) + head
            + socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HHHH", 40000, port, 8, 0))


@pytest.mark.parametrize("target", ["192.0.2.1", "8.8.8.8", "10.0.3.1", "172.17.0.1", "223.255.255.255"])
def test_out_to_the_world(target: str) -> None:
    assert permitted(frame(target))
    assert permitted(frame(target, protocol=ICMP))


@pytest.mark.parametrize("target", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.2.2", "10.0.2.3", "10.0.2.77",
                                    "10.0.2.255", "255.255.255.255", "224.0.0.1", "240.0.0.1", "169.254.169.254"])
def test_never_to_the_node(target: str) -> None:
    for protocol in (TCP, UDP, ICMP):
        assert not permitted(frame(target, protocol=protocol))


def test_services_of_the_nat() -> None:
    assert permitted(frame("10.0.2.3", 53, UDP)) and permitted(frame("10.0.2.3", 53, TCP))
    assert permitted(frame("255.255.255.255", 67, UDP, source="0.0.0.0"))
    assert permitted(frame("10.0.2.2", 67, UDP))
    assert not permitted(frame("10.0.2.2", 53, UDP))
    assert not permitted(frame("10.0.2.2", 69, UDP))
    assert not permitted(frame("10.0.2.3", 53, ICMP))
    # a later fragment has no port, whatever stands in its place
    assert not permitted(frame("10.0.2.3", 53, UDP, fragment=0x2000))
    assert not permitted(frame("10.0.2.3", 53, UDP, fragment=0x0001))


def test_odd_frames_stay() -> None:
    assert permitted(frame("10.0.2.2", kind=0x0806))           # ARP
    assert not permitted(frame("8.8.8.8", kind=0x86DD))        # IPv6
    assert not permitted(frame("8.8.8.8", kind=0x8100))        # VLAN
    assert not permitted(frame("8.8.8.8", version=0x46))       # options
    assert not permitted(frame("8.8.8.8", version=0x65))
    assert not permitted(frame("8.8.8.8", source="127.0.0.1"))
    assert not permitted(frame("8.8.8.8")[:33])
    assert not permitted(b"")
    assert not permitted(frame("10.0.2.3", 53, UDP)[:37])


def packed(*frames: bytes) -> bytes:
    return b"".join(len(f).to_bytes(4, "big") + f for f in frames)


def test_split_at_every_byte() -> None:
    good, bad = frame("8.8.8.8"), frame("127.0.0.1")
    stream = packed(good, bad, good)
    for cut in range(len(stream)):
        first, rest = split(stream[:cut])
        second, left = split(rest + stream[cut:])
        assert first + second == packed(good, good) and left == b""


def test_a_broken_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        split(b"\xff\xff\xff\xff")


def test_guard_passes_drops_and_ends() -> None:
    guard = Guard()
    guard.start()
    good = frame("8.8.8.8")
    guard.outdev.sendall(packed(frame("127.0.0.1"), good, frame("0.0.0.0")))
    guard.indev.settimeout(5)
    assert guard.indev.recv(4096) == packed(good)
    guard.close()
    assert not guard._thread.is_alive()


def test_guard_closes_the_way_out_on_a_broken_stream() -> None:
    guard = Guard()
    guard.start()
    guard.outdev.sendall(b"\xff" * 8)
    guard.indev.settimeout(5)
    assert guard.indev.recv(4096) == b""
    guard.close()


def test_guard_never_waits_for_who_does_not_read() -> None:
    """QEMU writes to us from the same thread that reads from us: if we waited, both would for ever."""
    guard = Guard()
    guard.start()
    guard.outdev.settimeout(10)
    block = packed(*[frame("8.8.8.8") + b"x" * 1400] * 100)
    for _ in range(100):  # 14 MB, and nobody reads indev
        guard.outdev.sendall(block)
    guard.close()
