"""What a real guest's root reaches: the world outside, and nothing of the node's loopback.

A listener on 127.0.0.1 counts who comes. The same guest without our guard must reach it, or the test proves nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vmjob import process
from vmjob.errors import ScratchFull, VmjobError
from vmjob.image import cpio
from vmjob.image.micro import build_micro
from vmjob.model import Boot, Network, QemuInfo, VmSpec
from vmjob.progress import Reporter
from vmjob.vm import cmdline, net, probe
from vmjob.vm.machine import Machine

pytestmark = pytest.mark.integration

NET = f"vmjob.net={net.ADDRESS}/{net.PREFIX},{net.GATEWAY},{net.DNS}"
# Our own init set the address; what follows is a root that wants to reach the node. 127.0.0.1 is taken from the
# guest's own loopback and routed out of its card.
REACH = """#!/bin/sh
exec >/dev/console 2>&1
world={world} own={own} tcp={tcp} udp={udp}
reach() {{ echo x | nc -w 1 $1 $2 >/dev/null 2>&1 && echo "REACHED $1 $2"; }}
reach $world
reach 10.0.2.2 $tcp
reach $own $tcp
echo DNS $(nslookup -type=a localhost. 10.0.2.3 2>&1 | tr '\\n' ' ')
card=$(ls /sys/class/net | grep -v lo | head -n 1)
ip -6 neigh show dev $card
for address in fe80::2 fec0::2; do reach $address%$card $tcp; done
ip addr flush dev lo
ip link set lo down
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
for address in 127.0.0.1 127.0.0.53; do
    ip route add $address via 10.0.2.2
    reach $address $tcp
    timeout 2 tftp -g -r x $address $udp
done
timeout 2 tftp -g -r x 10.0.2.2 $udp
ip addr flush dev $card
ip addr add 10.0.2.77/24 dev $card
udhcpc -i $card -n -q -t 2 -T 2 -s /bin/true && echo DHCP
echo ALL DONE
poweroff -f
"""
FILL = """#!/bin/sh
exec >/dev/console 2>&1
dd if=/dev/zero of=/dev/vda bs=1M oflag=direct && echo ALL DONE
poweroff -f
"""


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> QemuInfo:
    if not process.which("qemu-system-x86_64"):
        pytest.skip("needs QEMU: apt-get install qemu-system-x86")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMJOB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return probe.find_qemu()


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the micro image's kernel and initramfs."""
    folder = tmp_path_factory.mktemp("micro")
    try:
        build_micro(folder, Reporter())
    except VmjobError as error:
        pytest.skip(f"the micro image cannot be built here ({error.message}): needs apt-get and a Debian mirror")
    return folder


def boot(micro: Path, qemu: QemuInfo, folder: Path, agent: str, **more: str) -> VmSpec:
    """The micro image with ``agent`` in the place of ours."""
    tree = cpio.Tree()
    tree.file("usr/lib/vmjob/agent", agent.encode(), 0o755)
    (folder / "initrd").write_bytes((micro / "initrd.img").read_bytes() + tree.pack())
    khz = probe.host_khz()
    words = cmdline.kernel_arguments(Boot.JOB, "tcg", more.pop("words", ""), khz)
    return VmSpec(qemu=qemu.path, accel="tcg", machine=cmdline.choose_machine(Boot.JOB, qemu, "tcg", khz), cpus=1,
                  memory=256 << 20, boot=Boot.JOB, kernel=str(micro / "vmlinuz"), initrd="initrd",
                  cmdline=words, cpu_model=cmdline.cpu_model("tcg", qemu.version), **more)  # type: ignore[arg-type]


def console(machine: Machine) -> str:
    """All that the guest says until it ends."""
    async def read() -> str:
        streams = await machine.streams()
        try:
            said = b""
            try:
                while data := await asyncio.wait_for(streams["console"][0].read(4096), 60):
                    said += data
            except asyncio.TimeoutError:
                said += b"\n(silence for 60 s)"
            return said.decode(errors="replace")
        finally:
            await machine.stop()
            for _, writer in streams.values():
                writer.close()

    return asyncio.run(read())


class Visitors:
    """A TCP and a UDP listener; ``came`` lists who came."""

    def __init__(self, address: str) -> None:
        self.came: list[str] = []
        self.tcp, self.udp = socket.create_server((address, 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 0))
        for listen in (self._tcp, self._udp):
            threading.Thread(target=listen, daemon=True).start()

    def _tcp(self) -> None:
        while True:
            try:
                visitor, _ = self.tcp.accept()
            except OSError:
                return
            self.came.append("tcp")
            visitor.close()

    def _udp(self) -> None:
        while True:
            try:
                if not self.udp.recv(100):
                    return
            except OSError:
                return
            self.came.append("udp")

    def close(self) -> None:
        for listener in (self.tcp, self.udp):
            hang_up(listener)


def hang_up(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
    listener.close()


@pytest.fixture
def loopback() -> Iterator[Visitors]:
    visitors = Visitors("127.0.0.1")
    yield visitors
    visitors.close()


@pytest.fixture
def world() -> Iterator[Visitors]:
    """A listener on an address of this machine that is no loopback: it stands for the world outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.200", 9))
        except OSError:
            pytest.skip("this machine has no route out: give it one")
        own = asking.getsockname()[0]
    visitors = Visitors(own)
    yield visitors
    visitors.close()


def explore(micro: Path, qemu: QemuInfo, folder: Path, world: Visitors, loopback: Visitors) -> tuple[str, str]:
    own, port = world.tcp.getsockname()
    script = REACH.format(world=f'"{own} {port}"', own=own, tcp=loopback.tcp.getsockname()[1],
                          udp=loopback.udp.getsockname()[1])
    spec = boot(micro, qemu, folder, script, words=NET)
    with net.network(Network.NAT, qemu, folder) as link:
        spec = replace(spec, netdev=link.netdev, netdev_extra=link.extra)
        with Machine(spec, folder, link) as machine:
            return link.kind, console(machine)


def without(qemu: QemuInfo, *parts: str) -> QemuInfo:
    return replace(qemu, netdevs=tuple(part for part in qemu.netdevs if part not in parts))


@pytest.mark.parametrize("kind", ["passt", "user"])
def test_out_yes_loopback_no(kind: str, micro: Path, qemu: QemuInfo, tmp_path: Path, world: Visitors,
                             loopback: Visitors) -> None:
    if kind == "passt" and not process.which("passt"):
        pytest.skip("needs passt: apt-get install passt")
    if kind not in (*qemu.netdevs, *(["passt"] if "stream" in qemu.netdevs else [])):
        pytest.skip(f"this QEMU cannot do network {kind}: needs another QEMU")
    with_it = without(qemu, "stream") if kind == "user" else qemu
    used, said = explore(micro, with_it, tmp_path, world, loopback)
    assert used == kind and "ALL DONE" in said, said
    assert world.came.count("tcp") == 1, said       # the way out works
    assert loopback.came == [], said                # and leads nowhere near
    assert "DHCP" in said, said
    assert "DNS" in said and "timed out" not in said, said


def test_without_the_guard_it_would_be_reached(micro: Path, qemu: QemuInfo, tmp_path: Path, world: Visitors,
                                               loopback: Visitors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only QEMU's own NAT: what passt does depends on its version."""
    if "user" not in qemu.netdevs:
        pytest.skip("this QEMU has no user-mode network: needs another QEMU")
    monkeypatch.setenv(net.OVERRIDE, "1")
    used, said = explore(micro, without(qemu, "stream", "filter-redirector"), tmp_path, world, loopback)
    assert used == "user" and {"tcp", "udp"} <= set(loopback.came), said


def test_passt_has_no_secret_of_the_users(qemu: QemuInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what a guest writes, and has no fence."""
    monkeypatch.setenv("BEARER_TOKEN", "secret-of-the-users")
    with net.network(Network.NAT, qemu, tmp_path) as link:
        if not link.helper:
            pytest.skip("needs passt and a QEMU from 7.2 on: apt-get install passt")
        place = Path(f"/proc/{link.helper.child.pid}/environ")
        if not os.access(place, os.R_OK):
            pytest.skip("passt lets nobody but root look into it: run the tests as root")
        assert b"secret-of-the-users" not in place.read_bytes()


def test_a_full_disk_stops_the_guest(micro: Path, qemu: QemuInfo, tmp_path: Path) -> None:
    """Real ENOSPC, from a small file system in a mount namespace of QEMU's own."""
    apart = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if process.run([*apart, "true"], check=False).returncode:
        pytest.skip("needs mount namespaces: run as root, or allow user namespaces")
    (tmp_path / "small").mkdir()
    fake = tmp_path / "qemu"
    fake.write_text(f"""#!/bin/sh
exec {' '.join(apart)} sh -c 'mount -t tmpfs -o size=8m none small && truncate -s 64M small/out.raw && exec "$@"' \\
    sh {qemu.path} "$@"
""")
    fake.chmod(0o755)

    async def work(machine: Machine) -> VmjobError:
        streams = await machine.streams()
        try:
            return await asyncio.wait_for(machine.broken(), 60)
        finally:
            assert await machine.stop() == "quit"
            for _, writer in streams.values():
                writer.close()

    spec = boot(micro, replace(qemu, path=str(fake)), tmp_path, FILL, output_disk="small/out.raw")
    with Machine(spec, tmp_path) as machine:
        failure = asyncio.run(work(machine))
    assert isinstance(failure, ScratchFull), failure


def test_no_network_on_the_node(qemu: QemuInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "has_route", lambda: False)
    with net.network(Network.NAT, qemu, tmp_path) as link:
        assert link.kind == "isolated" and "no IPv4 route" in link.description
