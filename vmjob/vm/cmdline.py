"""The QEMU command line as a pure function of a VmSpec: no I/O, so golden files can hold it.

Everything that could make QEMU open something by itself is shut: no defaults, no user configuration,
a seccomp sandbox, and every disk given as a JSON ``-blockdev`` whose drivers are named down to the
last file. QEMU so never probes a format (a raw disk that begins like a qcow2 header would otherwise
name files of the node), and commas, spaces or non-ASCII letters in a path need no escaping.
"""

from __future__ import annotations

import json
from typing import Any

from vmjob.core.blockdev import stacked
from vmjob.core.model import TCG_BUFFER, Boot, QemuInfo, VmSpec
from vmjob.core.units import MIB
from vmjob.vm.faults import CMPXCHG16B, NEW_KERNELS

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# (chardev and socket name, port in the guest); bound by vm.machine before QEMU starts
PORTS = (("ctrl", "org.vmjob.0"), ("out", "org.vmjob.1"), ("err", "org.vmjob.2"))
MAC = "52:54:00:12:34:56"  # of the network card, which the seed of a cloud image names

SOCKETS = ("ctrl", "out", "err", "console", "shell", "qmp")
SHELL = "org.vmjob.shell"  # a terminal of the guest (its hvc0), for who looks in

# The old PC's timer and interrupt controller stay: they cost no measurable time. With ACPI the guest finds
# its virtio devices by itself, and needs nothing on its command line.
_MICROVM = "microvm,rtc=on,acpi=on,isa-serial=on,auto-kernel-cmdline=off"


def command_line(spec: VmSpec) -> list[str]:
    """The whole argv. Paths in ``spec`` are absolute or relative to QEMU's working folder."""
    argv = [spec.qemu, "-nodefaults", "-no-user-config", "-name", spec.name.replace(",", ",,"),
            "-sandbox", SANDBOX, "-display", "none", "-no-reboot"]
    argv += _machine(spec)
    for name in SOCKETS:
        argv += ["-chardev", f"socket,id={name},path={name}.sock,server=off"]
    argv += ["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control"]
    if spec.kernel:
        argv += ["-kernel", spec.kernel, "-append", spec.cmdline]
        argv += ["-initrd", spec.initrd] if spec.initrd else []
    argv += _disks(spec)
    argv += ["-object", "rng-builtin,id=rng", "-device", _device(spec, "virtio-rng") + ",rng=rng"]
    argv += ["-device", _device(spec, "virtio-serial")]
    for name, port in PORTS:
        argv += ["-device", f"virtserialport,chardev={name},name={port}"]
    argv += ["-device", f"virtconsole,chardev=shell,name={SHELL}"]
    return argv + _network(spec)


def _device(spec: VmSpec, name: str) -> str:
    """microvm has virtio on plain memory-mapped registers, q35 on PCI Express."""
    return f"{name}-{'device' if spec.machine == 'microvm' else 'pci'}"


def _machine(spec: VmSpec) -> list[str]:
    machine = _MICROVM if spec.machine == "microvm" else spec.machine
    argv: list[str] = []
    if spec.firmware_code:
        # the emulated flash is read-only code and a copy of the variables that belongs to this run
        machine += ",pflash0=fw-code" + (",pflash1=fw-vars" if spec.firmware_vars else "")
        argv += _blockdev(_raw_file("fw-code", spec.firmware_code, read_only=True))
        if spec.firmware_vars:
            argv += _blockdev(_raw_file("fw-vars", spec.firmware_vars, read_only=False))
    # microvm's firmware lays an initramfs to the end of 2 GiB, and of exactly that much memory ACPI's tables over it
    memory = spec.memory // MIB - (spec.machine == "microvm" and spec.memory // MIB == 2048)
    accel = f"tcg,thread=multi,tb-size={TCG_BUFFER // MIB}" if spec.accel == "tcg" else spec.accel
    return ["-machine", machine, "-accel", accel, "-cpu", spec.cpu_model or "max", "-smp", str(spec.cpus),
            "-m", f"{memory}M", *argv]


def _raw_file(node: str, path: str, *, read_only: bool, **more: Any) -> dict[str, Any]:
    return {"driver": "raw", "node-name": node, "read-only": read_only, **more,
            "file": {"driver": "file", "filename": path, "read-only": read_only, **more}}


def _overlay(spec: VmSpec) -> dict[str, Any]:
    # A run's overlay is thrown away with the run: flushes would only wear the disk (no-flush).
    cache = {"direct": False, "no-flush": True}
    node: dict[str, Any] = {
        "driver": "qcow2", "node-name": "root", "read-only": False, "discard": "unmap", "cache": cache,
        "file": {"driver": "file", "filename": spec.overlay, "discard": "unmap", "cache": cache},
    }
    if spec.chain:
        node["backing"] = stacked(spec.chain)
    return node


def _disks(spec: VmSpec) -> list[str]:
    argv: list[str] = []
    if spec.overlay:
        argv += _blockdev(_overlay(spec)) + _disk(spec, "root", "vmjob-root")
    if spec.input_disk:
        argv += _blockdev(_raw_file("in", spec.input_disk, read_only=True)) + _disk(spec, "in", "vmjob-in")
    if spec.output_disk:
        # through the host's page cache: a guest's O_DIRECT write is then one copy, and we read it back from memory
        out = _raw_file("out", spec.output_disk, read_only=False, discard="unmap",
                        cache={"direct": False, "no-flush": True})
        argv += _blockdev(out) + _disk(spec, "out", "vmjob-out")
    if spec.seed_disk:
        argv += _blockdev(_raw_file("seed", spec.seed_disk, read_only=True)) + _disk(spec, "seed", "vmjob-seed")
    return argv


def _blockdev(node: dict[str, Any]) -> list[str]:
    return ["-blockdev", json.dumps(node, ensure_ascii=False, separators=(",", ":"))]


def _disk(spec: VmSpec, node: str, serial: str) -> list[str]:
    # A full or broken disk of the host stops the guest and tells us (BLOCK_IO_ERROR), instead of
    # handing the program an error it would turn into a wrong result.
    device = f"{_device(spec, 'virtio-blk')},drive={node},serial={serial},werror=stop,rerror=stop"
    if node == "root" and spec.boot is Boot.DISK:
        device += ",bootindex=0"
    return ["-device", device]


def _network(spec: VmSpec) -> list[str]:
    if not spec.netdev:
        return ["-nic", "none"]
    argv = ["-netdev", spec.netdev, "-device", f"{_device(spec, 'virtio-net')},netdev=net0,mac={MAC}"]
    if spec.machine != "microvm":
        argv[-1] += ",romfile="  # nobody boots from the network: saves the option ROM
    return argv + list(spec.netdev_extra)


# ---------------------------------------------------------------- choices that go into a VmSpec


def choose_machine(boot: Boot, qemu: QemuInfo, accel: str = "kvm", host_khz: int = 0) -> str:
    """``microvm`` for our own init where the binary has it: it boots faster. A distribution's init and firmware
    may want PCI, so they get q35. So does an emulated guest that must measure its clock (``host_khz`` 0): on microvm
    its kernel mostly hangs in that."""
    if boot is not Boot.JOB or "microvm" not in qemu.machines or (accel == "tcg" and not host_khz):
        return "q35"
    return "microvm"


def cpu_model(accel: str, version: tuple[int, ...], attempt: int = 1) -> str:
    """The host's own CPU under KVM; under emulation everything QEMU can emulate.

    QEMU 7's emulated cmpxchg16b gets the flags wrong (seen with 7.2): kernels from 6.12 on panic in their first second.
    The first boot offers it all the same, as programs built for x86-64-v2 (all of RHEL 9, NumPy) refuse a CPU without;
    the second ``attempt`` does without. Never the quick byte copies (erms): emulated they go byte by byte, and cost
    a kernel that trusts them a tenth of its boot and half of its copies' speed. Nor fsrm, which QEMU 10 has: kernel 6.1
    takes it to mean erms too, and hangs without."""
    if accel == "kvm":
        return "host"
    if NEW_KERNELS.hits(version) and attempt > 1:
        return "Nehalem"  # x86-64-v2, like the other's first try
    return "max,-erms,-fsrm,-cx16" if CMPXCHG16B.hits(version) and attempt > 1 else "max,-erms,-fsrm"


def kernel_arguments(boot: Boot, accel: str, manifest_cmdline: str = "", host_khz: int = 0) -> str:
    """The kernel command line for the boot methods ``job`` and ``system``.

    Under emulation the kernel measures its clock against a timer and may wait for ever, on microvm mostly does:
    ``host_khz`` (see vm.probe.host_khz; 0: not known) saves it the measurement. What an image's manifest
    says comes later and so wins."""
    words = ["console=ttyS0", "quiet", "panic=-1", "random.trust_cpu=on"]
    if boot is Boot.JOB:
        words += ["cryptomgr.notests", "rcupdate.rcu_expedited=1"]  # a tenth of the boot
    if accel == "tcg":
        words += ["tsc=reliable", "no_timer_check"]
        words += [f"tsc_early_khz={host_khz}"] if host_khz else []
    words += manifest_cmdline.split()
    return " ".join([*words, f"vmjob.boot={boot.value}"])
