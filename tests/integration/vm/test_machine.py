"""A real QEMU under emulation, with the tiny test guest as its kernel: no image needed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import ROOT
from vmjob.core import process
from vmjob.core.errors import QemuFailed, ScratchFull
from vmjob.core.model import Boot, Network, QemuInfo, VmSpec
from vmjob.vm import cmdline, disks, firmware, net, probe, probe_guest
from vmjob.vm import machine as vm_machine
from vmjob.vm.machine import Machine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not process.which("qemu-system-x86_64"), reason="needs QEMU: apt-get install qemu-system-x86"),
]


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> QemuInfo:
    os.environ["VMJOB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        return probe.find_qemu()
    finally:
        del os.environ["VMJOB_CACHE"]


def sleepy() -> bytes:
    """The test guest, which at its end sleeps for ever instead of resetting the machine."""
    end = bytes.fromhex("e6f46a006a000f011c24cc")  # outb; lidt of nothing; int3
    assert probe_guest.GUEST.count(end) == 1
    return probe_guest.GUEST.replace(end, bytes.fromhex("faf4ebfc").ljust(len(end), b"\x90"))  # cli; hlt; jmp back


@pytest.fixture
def spec(qemu: QemuInfo, tmp_path: Path) -> VmSpec:
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(sleepy())
    return VmSpec(qemu=qemu.path, accel="tcg", machine=cmdline.choose_machine(Boot.JOB, qemu), cpus=1, memory=64 << 20,
                  boot=Boot.JOB, kernel=str(kernel), cpu_model=cmdline.cpu_model("tcg", qemu.version))


async def alive(machine: Machine) -> dict[str, Any]:
    """Connect and wait for the guest's last word on its console; it then sleeps for ever."""
    streams = await machine.streams()
    await asyncio.wait_for(streams["console"][0].readuntil(probe_guest.DONE), 30)
    return streams


def drive(machine: Machine, work: Callable[[Machine], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        streams = await alive(machine)
        try:
            await work(machine)
        finally:
            await machine.stop()
            for _, writer in streams.values():
                writer.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 90))


def pid_of(machine: Machine) -> int:
    assert machine.qemu._process
    return machine.qemu._process.pid


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("accel", ["tcg"])
def test_the_probe_passes_where_the_accelerator_works(accel: str, qemu: QemuInfo) -> None:
    assert probe_guest.run_test_guest(qemu.path, accel, 60) is None


def test_kvm_is_answered_in_bounded_time(qemu: QemuInfo) -> None:
    if probe.device_problem(Path("/dev/kvm")):
        pytest.skip("this user has no /dev/kvm")
    problem = probe_guest.run_test_guest(qemu.path, "kvm")
    assert problem is None or problem


def test_a_warm_probe_starts_nothing(qemu: QemuInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path))
    first = probe.find_qemu()
    monkeypatch.setattr(process, "run", lambda *args, **more: pytest.fail("it asked again"))
    assert probe.find_qemu() == first
    assert "q35" in first.machines and first.version >= (5, 2)


@pytest.mark.parametrize("folder", ["short", "long " + "x" * 200, "é, \"quoted\" und leer"])
def test_start_pause_resume_quit(spec: VmSpec, tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()

    async def work(machine: Machine) -> None:
        await machine.pause()
        await machine.resume()
        await asyncio.sleep(0.1)
        assert [e["event"] for e in machine.events if e["event"] in ("STOP", "RESUME")] == ["STOP", "RESUME"]
        assert await machine.stop() == "quit"
        assert await machine.stop() == "quit"
        assert machine.failure() is None

    with Machine(spec, place) as machine:
        drive(machine, work)
        pid = pid_of(machine)
    assert gone(pid)
    assert machine.cpu_seconds > 0 and 16 << 20 < machine.peak_memory < 2 << 30
    assert [f.name for f in place.iterdir()] == ["qemu.log"]


def test_ladder_asks_the_agent_first(spec: VmSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_machine, "RUNGS", {**vm_machine.RUNGS, "agent": 0.2, "acpi": 0.2})
    asked = []

    async def ask() -> None:
        asked.append(True)

    async def work(machine: Machine) -> None:
        assert await machine.stop(ask) == "quit"  # this guest hears neither the agent's port nor the button

    with Machine(replace(spec, boot=Boot.SYSTEM, machine="q35"), tmp_path) as machine:
        drive(machine, work)
    assert asked and any(e["event"] == "POWERDOWN" for e in machine.events)


def test_ladder_goes_up_to_sigkill(spec: VmSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_machine, "RUNGS", {**vm_machine.RUNGS, "quit": 0.2, "sigterm": 0.2})

    async def deaf(*_: object) -> bool:
        return True

    async def work(machine: Machine) -> None:
        os.kill(pid_of(machine), signal.SIGSTOP)  # such a QEMU hears nothing but SIGKILL
        machine._execute = deaf  # type: ignore[method-assign]
        assert await machine.stop() == "sigkill"

    with Machine(spec, tmp_path) as machine:
        drive(machine, work)
    assert gone(pid_of(machine))


def test_quit_meets_a_guest_that_ends_by_itself(spec: VmSpec, tmp_path: Path) -> None:
    """QEMU then hangs now and then when asked by its control protocol; five times are enough to see it."""
    Path(spec.kernel).write_bytes(probe_guest.GUEST)  # resets the machine after its last word

    async def work(machine: Machine) -> None:
        await machine.quit()
        assert await machine.stop() in ("quit", "itself")

    for _ in range(5):
        with Machine(spec, tmp_path) as machine:
            drive(machine, work)


def test_leaving_without_stop_kills(spec: VmSpec, tmp_path: Path) -> None:
    with pytest.raises(KeyError), Machine(spec, tmp_path) as machine:
        raise KeyError
    assert gone(pid_of(machine)) and machine.stopped_by == "sigkill"


def test_a_qemu_that_does_not_start_is_told_with_its_words(spec: VmSpec, tmp_path: Path) -> None:
    async def connect(machine: Machine) -> None:
        await machine.streams()

    broken = replace(spec, input_disk="in.tar")
    with pytest.raises(QemuFailed, match=r"in\.tar") as told, Machine(broken, tmp_path) as machine:
        asyncio.run(connect(machine))
    assert "status 1" in told.value.message


def test_a_killed_qemu_is_told(spec: VmSpec, tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        os.kill(pid_of(machine), signal.SIGKILL)
        failure = await asyncio.wait_for(machine.broken(), 10)
        assert isinstance(failure, QemuFailed) and "SIGKILL" in failure.message

    with Machine(spec, tmp_path) as machine:
        drive(machine, work)
    assert machine.stopped_by == "itself"


def test_a_full_disk_is_told_before_the_end_of_qemu(spec: VmSpec, tmp_path: Path) -> None:
    async def work(machine: Machine) -> None:
        machine._take({"event": "BLOCK_IO_ERROR", "data": {"action": "report", "nospace": True}})
        machine._take({"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "nospace": True}})
        assert isinstance(await asyncio.wait_for(machine.broken(), 5), ScratchFull)
        assert await machine.stop(lambda: pytest.fail("nobody in there can answer")) == "quit"

    with Machine(spec, tmp_path) as machine:
        drive(machine, work)


def test_killed_with_minus_nine_nothing_stays(spec: VmSpec, qemu: QemuInfo, tmp_path: Path) -> None:
    """The wrapper dies without a word: QEMU and passt must not outlive it."""
    script = f"""
import sys, time
from pathlib import Path
from vmjob.core.model import *
from vmjob.vm import net
from vmjob.vm.machine import Machine
folder = Path({str(tmp_path)!r})
qemu = {qemu!r}
with net.network(Network.NAT, qemu, folder) as link:
    spec = {spec!r}
    import dataclasses
    spec = dataclasses.replace(spec, netdev=link.netdev, netdev_extra=link.extra)
    with Machine(spec, folder, link):
        print(link.kind, flush=True)
        time.sleep(60)
""".replace("<Boot.JOB: 'job'>", "Boot.JOB")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout
    with closing(parent.stdout):
        kind = parent.stdout.readline().strip()
        before = children(parent.pid)
        parent.kill()
        parent.wait()
    assert len(before) == (2 if kind == b"passt" else 1)
    end = time.monotonic() + 10
    while any(not gone(pid) for pid in before):
        assert time.monotonic() < end, f"still there: {before}"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(place.name))
        except OSError:
            continue
    return found


def test_overlay_and_output_disk(tmp_path: Path) -> None:
    if not process.which("qemu-img"):
        pytest.skip("needs qemu-img: apt-get install qemu-utils")
    overlay = tmp_path / "over: é, lay.qcow2"
    disks.create_overlay(overlay, 65536)
    told = process.run(["qemu-img", "info", "--output=json", overlay]).stdout.decode()
    assert "backing" not in told and '"virtual-size": 65536' in told
    disks.create_output_disk(tmp_path / "out.raw", (1 << 40) + 1)
    found = (tmp_path / "out.raw").stat()
    assert found.st_size == (1 << 40) + 512 and found.st_blocks == 0


@pytest.mark.parametrize("kind", ["microvm", "q35", "uefi"])
def test_qemu_takes_all_disks(kind: str, spec: VmSpec, qemu: QemuInfo, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk and the firmware at once: what golden files cannot tell is whether QEMU accepts it."""
    code, variables = "", ""
    if kind == "uefi":
        found = firmware.look_for_uefi()
        if not found:
            pytest.skip("needs UEFI firmware: apt-get install ovmf")
        code, variables = found.code, "vars.fd"
        (tmp_path / variables).write_bytes(Path(found.variables).read_bytes())
    if kind not in (*qemu.machines, "uefi"):
        pytest.skip(f"this QEMU has no machine {kind}")
    base = tmp_path / "base.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "16M"])
    disks.create_overlay(tmp_path / "overlay.qcow2", 1 << 20)
    disks.create_output_disk(tmp_path / "out.raw", 1 << 20)
    for name in ("in.tar", "seed.iso"):
        (tmp_path / name).write_bytes(b"\0" * 2048)
    base.chmod(0o400)

    async def work(machine: Machine) -> None:
        await asyncio.wait_for(machine.streams(), 20)
        assert await machine.stop() == "quit"

    whole = replace(spec, machine="microvm" if kind == "microvm" else "q35", overlay="overlay.qcow2",
                    chain=((str(base), "qcow2"),), input_disk="in.tar", output_disk="out.raw", seed_disk="seed.iso",
                    firmware_code=code, firmware_vars=variables, boot=Boot.DISK if code else Boot.JOB,
                    kernel="" if code else spec.kernel)
    monkeypatch.setattr(vm_machine, "RUNGS", {**vm_machine.RUNGS, "acpi": 0.1})
    with net.network(Network.NAT, qemu, tmp_path) as link:
        with_net = replace(whole, netdev=link.netdev, netdev_extra=link.extra)
        with Machine(with_net, tmp_path, link) as machine:
            asyncio.run(work(machine))
    assert "rror" not in (tmp_path / "qemu.log").read_text()


def test_network_none_and_isolated_start_no_helper(qemu: QemuInfo, tmp_path: Path) -> None:
    for mode in (Network.NONE, Network.ISOLATED):
        with net.network(mode, qemu, tmp_path) as link:
            assert not link.fds and link.kind == mode.value
