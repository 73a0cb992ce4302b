"""The QEMU command line against golden files. VMJOB_GOLDEN=write writes them anew; read the diff then."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vmjob.model import Boot, Network, QemuInfo, VmSpec
from vmjob.vm import cmdline, net
from vmjob.vm.cmdline import command_line

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).parent.parent / "golden"
VERSION = (8, 2, 0)
LINKS = {"passt": net._link("passt", "", 5, (6, 7)), "user": net._link("user", "", 0, (6, 7)),
         "isolated": net._link("isolated", "", 0, None), "none": net._link("none", "", 0, None)}
MACHINES = {"job-microvm": (Boot.JOB, "microvm"), "job-q35": (Boot.JOB, "q35"),
            "system-q35": (Boot.SYSTEM, "q35"), "disk-q35": (Boot.DISK, "q35"), "uefi-q35": (Boot.DISK, "q35")}


def spec(name: str, accel: str, link: net.Link) -> VmSpec:
    boot, machine = MACHINES[name]
    made = VmSpec(
        qemu="/usr/bin/qemu-system-x86_64", accel=accel, machine=machine, cpus=2, memory=2 << 30, boot=boot,
        name="vmjob-a job", overlay="overlay.qcow2", chain=(("/proc/self/fd/10", "qcow2"),),
        input_disk="in.tar", output_disk="out.raw", netdev=link.netdev, netdev_extra=link.extra,
        cpu_model=cmdline.cpu_model(accel, VERSION))
    if boot is Boot.DISK:
        made = replace(made, seed_disk="seed.iso")
        uefi = {"firmware_code": "/usr/share/OVMF/OVMF_CODE_4M.fd", "firmware_vars": "vars.fd"}
        return replace(made, **uefi) if name.startswith("uefi") else made
    return replace(made, kernel="/proc/self/fd/8", initrd="/proc/self/fd/9",
                   cmdline=cmdline.kernel_arguments(boot, accel, "root=/dev/vda1", 2596000))


def written(name: str) -> str:
    text = ""
    for accel in ("kvm", "tcg"):
        for kind, link in LINKS.items():
            text += f"== {accel} {kind}\n" + "".join(f"{word}\n" for word in command_line(spec(name, accel, link)))
    return text


@pytest.mark.parametrize("name", MACHINES)
def test_golden(name: str) -> None:
    file = GOLDEN / f"vm-{name}.txt"
    if os.environ.get("VMJOB_GOLDEN") == "write":
        file.write_text(written(name))
    assert written(name) == file.read_text()


def blockdevs(argv: list[str]) -> list[dict[str, object]]:
    return [json.loads(argv[at + 1]) for at, word in enumerate(argv) if word == "-blockdev"]


def test_paths_reach_qemu_unchanged() -> None:
    odd = "/scratch/é, a\"b/im age,format=qcow2.raw"
    argv = command_line(replace(spec("job-q35", "tcg", LINKS["none"]), overlay=odd, chain=((odd, "raw"),),
                                input_disk=odd))
    names = [node["file"]["filename"] for node in blockdevs(argv)]  # type: ignore[index]
    assert names == [odd, odd, "out.raw"]
    assert blockdevs(argv)[0]["backing"]["file"]["filename"] == odd  # type: ignore[index]


def test_every_driver_is_named() -> None:
    def walk(node: dict[str, object]) -> None:
        assert "driver" in node
        for key in ("file", "backing"):
            if isinstance(node.get(key), dict):
                walk(node[key])  # type: ignore[arg-type]

    for name in MACHINES:
        for node in blockdevs(command_line(spec(name, "kvm", LINKS["none"]))):
            walk(node)


def test_the_image_and_the_inputs_are_read_only() -> None:
    root, given, out, seed = blockdevs(command_line(spec("disk-q35", "kvm", LINKS["none"])))
    assert root["backing"]["read-only"] and root["backing"]["file"]["read-only"]  # type: ignore[index]
    assert root["backing"]["backing"] is None  # type: ignore[index]
    assert given["read-only"] and seed["read-only"] and not out["read-only"]


def test_layers_are_told_to_the_last_one() -> None:
    chain = (("/cache/disk.vmdk", "vmdk"), ("/cache/d-1", "qcow2"), ("/cache/d-2", "qcow2"))
    node: object = blockdevs(command_line(replace(spec("system-q35", "kvm", LINKS["none"]), chain=chain)))[0]["backing"]
    for path, form in reversed(chain):
        assert isinstance(node, dict)
        assert (node["driver"], node["file"]["filename"], node["read-only"], node["file"]["read-only"]) \
            == (form, path, True, True)
        node = node.get("backing")
    assert node is None


def test_comma_in_the_name_is_doubled() -> None:
    argv = command_line(replace(spec("job-q35", "tcg", LINKS["none"]), name="a,debug-threads=on"))
    assert argv[argv.index("-name") + 1] == "a,,debug-threads=on"


@pytest.mark.parametrize(("accel", "version", "first", "second"), [
    ("kvm", (7, 2, 22), "host", "host"), ("tcg", (7, 2, 22), "max,-erms,-fsrm", "max,-erms,-fsrm,-cx16"),
    ("tcg", (5, 2, 0), "max,-erms,-fsrm", "Nehalem"), ("tcg", (6, 2, 0), "max,-erms,-fsrm", "max,-erms,-fsrm"),
    ("tcg", (10, 0), "max,-erms,-fsrm", "max,-erms,-fsrm")])
def test_cpu_model(accel: str, version: tuple[int, ...], first: str, second: str) -> None:
    assert [cmdline.cpu_model(accel, version, attempt) for attempt in (1, 2)] == [first, second]


def test_machine_choice() -> None:
    both, old = QemuInfo("q", VERSION, ("microvm", "q35")), QemuInfo("q", VERSION, ("q35",))
    assert cmdline.choose_machine(Boot.JOB, both) == "microvm"
    assert cmdline.choose_machine(Boot.JOB, old) == "q35"
    assert cmdline.choose_machine(Boot.SYSTEM, both) == "q35"
    assert cmdline.choose_machine(Boot.JOB, both, "tcg", 2596000) == "microvm"
    assert cmdline.choose_machine(Boot.JOB, both, "tcg", 0) == "q35"


def test_kernel_arguments() -> None:
    words = cmdline.kernel_arguments(Boot.JOB, "tcg", "root=/dev/vda quiet", 2596000).split()
    assert "tsc_early_khz=2596000" in words and "root=/dev/vda" in words and words[-1] == "vmjob.boot=job"
    assert "tsc" not in cmdline.kernel_arguments(Boot.SYSTEM, "kvm", "", 2596000)
    assert "tsc_early_khz" not in cmdline.kernel_arguments(Boot.JOB, "tcg", "", 0)


def test_plan_starts_nothing_and_shows_the_same_netdev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "has_route", lambda: True)
    qemu = QemuInfo("q", VERSION, (), ("user", "filter-redirector"))
    assert net.plan(Network.NAT, qemu).netdev == LINKS["user"].netdev
    assert net.plan(Network.NONE, qemu).netdev == ""
