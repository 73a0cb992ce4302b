"""The guest's network: which netdev QEMU gets, and the helpers behind it.

``nat``: passt where it is installed and QEMU can talk to it (7.2 and later), else QEMU's user-mode network.
Both show the guest the same small network, 10.0.2.0/24: address .15, gateway .2, name server .3. Nobody
reaches in, as no port is forwarded; the guest does not reach the node's loopback, as vm.guard reads each
frame that it sends. All ends are socket pairs, never names in a folder: passt run as root becomes
``nobody`` and could not open them; and when we are killed the pairs close, which ends passt.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from vmjob import process
from vmjob.errors import NetworkRefused
from vmjob.machinetext import last_line, lines, read
from vmjob.model import Network, QemuInfo
from vmjob.vm import meter
from vmjob.vm.guard import ADDRESS, DNS, GATEWAY, PREFIX, Guard

log = logging.getLogger("vmjob.net")

OVERRIDE = "VMJOB_ALLOW_USERNET"
_FILTER = "filter-redirector"
_LOOK = 0.25  # seconds between two looks at passt


@dataclass(frozen=True)
class Traffic:
    """What counts the bytes of a guest's card while it runs and afterwards; None: nobody."""

    guard: Optional[Guard] = None
    meter: Optional[meter.Meter] = None

    @property
    def received(self) -> Optional[int]:
        return self.meter.received if self.meter else None

    @property
    def sent(self) -> Optional[int]:
        return self.guard.sent if self.guard else None


class Helper:
    """A running passt."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child

    async def lost(self) -> str:
        """Waits until it has ended, and says how. Nothing that ends it is meant to happen while a guest runs."""
        import asyncio

        while (status := self.child.poll()) is None:
            await asyncio.sleep(_LOOK)
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"passt {how}"

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.child.terminate()
        try:
            self.child.wait(2)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


@dataclass(frozen=True)
class Link:
    """``netdev`` and ``extra`` go into VmSpec.netdev and netdev_extra; ``fds`` must be passed to QEMU and
    closed in us once it runs (``handed_over``). ``kind``: passt, user, isolated, none; ``description`` for people.
    ``address`` … ``dns`` are the guest's, empty where it has none. ``traffic``: None where there is none to count.
    ``helper``: the process without which there is no network any more, where there is one."""

    kind: str
    description: str
    netdev: str = ""
    extra: tuple[str, ...] = ()
    sockets: tuple[socket.socket, ...] = ()
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    dns: str = ""
    traffic: Optional[Traffic] = None
    helper: Optional[Helper] = None

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(s.fileno() for s in self.sockets)

    def handed_over(self) -> None:
        """QEMU runs: its ends must be open in nobody else, or their closing is never seen."""
        for end in self.sockets:
            end.close()


def plan(mode: Network, qemu: QemuInfo) -> Link:
    """The link as ``network`` would make it, with nothing started: descriptors are shown as 0."""
    kind, description = _choose(mode, qemu)
    return _link(kind, description, 0, (0, 0) if kind in ("passt", "user") and _guarded(qemu) else None)


@contextmanager
def network(mode: Network, qemu: QemuInfo, run_dir: Path, metered: bool = False) -> Iterator[Link]:
    """Start what ``mode`` needs, and end it. Give the link to vm.machine.Machine as well. ``metered``: count what comes
    in too. Raises NetworkRefused."""
    with ExitStack() as stack:
        link = _start(mode, qemu, run_dir, stack)
        if metered and link.traffic and link.traffic.guard:
            counter = meter.Meter(run_dir)
            stack.callback(counter.close)
            counter.start()
            link = replace(link, extra=(*link.extra, *meter.arguments()), traffic=replace(link.traffic, meter=counter))
        yield link


def _start(mode: Network, qemu: QemuInfo, run_dir: Path, stack: ExitStack) -> Link:
    kind, description = _choose(mode, qemu)
    tap: Optional[socket.socket] = None
    helper: Optional[Helper] = None
    if kind == "passt":
        tap, helper = _passt(run_dir, stack)
        if tap is None:
            said = last_line(read(run_dir / "passt.log"), "no answer")
            kind, description = _without_passt(qemu, f"passt does not work here ({said}): ")
    ends: tuple[socket.socket, ...] = (tap,) if tap else ()
    fds: Optional[tuple[int, int]] = None
    guard: Optional[Guard] = None
    if kind in ("passt", "user") and _guarded(qemu):
        guard = Guard()
        stack.callback(guard.close)
        guard.start()
        ends += (guard.outdev, guard.indev)
        fds = (guard.outdev.fileno(), guard.indev.fileno())
    log.info("network: %s", description)
    link = _link(kind, description, tap.fileno() if tap else 0, fds, ends)
    return replace(link, traffic=Traffic(guard), helper=helper) if kind in ("passt", "user") else link


def _choose(mode: Network, qemu: QemuInfo) -> tuple[str, str]:
    if mode is Network.NONE:
        return "none", "none: the guest has no network card"
    if mode is Network.ISOLATED:
        return "isolated", "isolated: the guest's card leads nowhere"
    if not has_route():
        # Most jobs need no network. They run on a node that has none, and the others get to read why not.
        return "isolated", "this node has no IPv4 route out: the guest's card leads nowhere"
    if "stream" in qemu.netdevs and process.which("passt") and (_guarded(qemu) or _overridden()):
        return "passt", "NAT by passt" + ("" if _guarded(qemu) else f", unguarded ({OVERRIDE}=1)")
    return _without_passt(qemu, "")


def _without_passt(qemu: QemuInfo, why: str) -> tuple[str, str]:
    if "user" not in qemu.netdevs:
        raise NetworkRefused(f"{why}QEMU {qemu.version_text} has no user-mode network and there is no passt to use",
                             "install passt (QEMU 7.2 and later can use it), or run the job with network: none")
    if _guarded(qemu):
        return "user", f"{why}NAT by QEMU itself"
    if _overridden():
        return "user", f"{why}NAT by QEMU itself, unguarded ({OVERRIDE}=1): the guest reaches this node's loopback"
    raise NetworkRefused(f"{why}this QEMU has no {_FILTER}: a guest behind its NAT could reach this node's loopback",
                         f"take another QEMU, run the job with network: none, or set {OVERRIDE}=1 to risk it here")


def _guarded(qemu: QemuInfo) -> bool:
    return _FILTER in qemu.netdevs


def _overridden() -> bool:
    return os.environ.get(OVERRIDE, "") == "1"


def _link(kind: str, description: str, tap: int, guard: Optional[tuple[int, int]],
          ends: tuple[socket.socket, ...] = ()) -> Link:
    if kind == "none":
        return Link(kind, description)
    if kind == "isolated":
        # a hub with nothing else on it: not even DHCP, and no code of a NAT to trust
        return Link(kind, description, "hubport,id=net0,hubid=0")
    netdev = {"passt": f"stream,id=net0,server=off,addr.type=fd,addr.str={tap}",
              "user": f"user,id=net0,ipv6=off,net=10.0.2.0/{PREFIX},host={GATEWAY},dns={DNS},dhcpstart={ADDRESS}"}[kind]
    extra: tuple[str, ...] = ()
    if guard:
        extra = ("-chardev", f"socket,id=guard-out,fd={guard[0]}", "-chardev", f"socket,id=guard-in,fd={guard[1]}",
                 "-object", f"{_FILTER},id=guard,netdev=net0,queue=rx,outdev=guard-out,indev=guard-in")
    return Link(kind, description, netdev, extra, ends, ADDRESS, PREFIX, GATEWAY, DNS)


def has_route(table: Path = Path("/proc/net/route")) -> bool:
    """Is there an IPv4 default route (up, through a gateway or an interface)?"""
    with suppress(OSError):
        for line in lines(read(table))[1:]:
            words = line.split()
            if len(words) > 7 and words[1] == words[7] == "00000000" and int(words[3], 16) & 1:
                return True
    return False


# ---------------------------------------------------------------- passt


def passt_command(passt: str, fd: int, dns: str = "") -> list[str]:
    """passt in the foreground on a connected socket. The guest gets an address of its own, not the
    node's; ``dns`` is told only where the node's resolv.conf names a resolver that passt cannot use."""
    argv = [passt, "-f", "-q", "-F", str(fd), "-4", "--no-map-gw", "-t", "none", "-u", "none",
            "-a", ADDRESS, "-n", str(PREFIX), "-g", GATEWAY, "--dns-forward", DNS]
    return argv + (["-D", dns] if dns else [])


def upstream_dns(etc: Path = Path("/etc/resolv.conf"),
                 systemd: Path = Path("/run/systemd/resolve/resolv.conf")) -> str:
    """The first real name server where the node's own list names only a local stub, else empty."""
    def servers(file: Path) -> list[str]:
        with suppress(OSError):
            return [w[1] for w in map(str.split, lines(read(file)))
                    if len(w) > 1 and w[0] == "nameserver" and ":" not in w[1]]
        return []

    if any(not s.startswith("127.") for s in servers(etc)):
        return ""
    return next((s for s in servers(systemd) if not s.startswith("127.")), "")


def _passt(run_dir: Path, stack: ExitStack) -> tuple[Optional[socket.socket], Optional[Helper]]:
    """QEMU's end of a running passt, and passt; None where passt does not start (no namespaces for users, too old)."""
    ours, theirs = socket.socketpair()
    with (run_dir / "passt.log").open("wb") as said:
        child = process.spawn(passt_command(process.which("passt") or "passt", theirs.fileno(), upstream_dns()),
                              pass_fds=[theirs.fileno()], stderr=said, env=process.bare(os.environ))
    theirs.close()
    helper = Helper(child)
    stack.callback(helper.end)
    stack.callback(ours.close)
    return (ours, helper) if _answers(ours) else (None, None)


def _answers(tap: socket.socket, seconds: float = 3.0) -> bool:
    """Ask who has the gateway's address: an answer says that passt runs, its silence or end that it does not."""
    mac = b"\x52\x54\x00\x12\x34\x56"
    ask = (b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + mac + socket.inet_aton(ADDRESS)
           + b"\0" * 6 + socket.inet_aton(GATEWAY))
    with suppress(OSError):
        tap.sendall(len(ask).to_bytes(4, "big") + ask)
        end, held = time.monotonic() + seconds, b""
        while select.select([tap], [], [], max(0.0, end - time.monotonic()))[0]:
            data = tap.recv(4096)
            held += data
            # nothing but whole frames may be taken away before QEMU reads here
            if not data or (len(held) >= 4 and len(held) >= 4 + int.from_bytes(held[:4], "big")):
                return bool(data)
    return False

