"""Job + image + slot + host → the virtual machine. Pure, so that ``vmjob plan`` shows what ``vmjob run`` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmjob.core.model import AccelChoice, Boot, Granted, Job, Manifest, QemuInfo, VmSpec
from vmjob.core.units import parse_duration
from vmjob.image.store.chain import formats
from vmjob.job.boot import boot_method
from vmjob.vm import cmdline
from vmjob.vm.net import Link

# Seconds until the agent must have said hello. Emulation on a busy node is slow; a hang costs this twice.
BOOT_TIMEOUTS = {Boot.JOB: 60, Boot.SYSTEM: 300, Boot.DISK: 600}
SILENCE = 60


@dataclass(frozen=True)
class RunFiles:
    """Files of one run: image files by role, the image's chain of disks (model.Image), and what the run itself makes
    (names in the run folder)."""

    image: dict[str, Path]
    input_disk: str = ""
    output_disk: str = "out.raw"
    overlay: str = "overlay.qcow2"
    seed: str = "seed.iso"
    firmware_vars: str = "uefi-vars.fd"
    chain: tuple[Path, ...] = ()


def timeouts(boot: Boot) -> tuple[int, int]:
    """Seconds until hello, and seconds of silence after which a guest counts as hung.
    VMJOB_BOOT_TIMEOUT and VMJOB_SILENCE_TIMEOUT (durations) override them. Raises JobError."""
    def chosen(variable: str, default: int) -> int:
        value = os.environ.get(variable)
        return parse_duration(value, variable) if value else default

    return chosen("VMJOB_BOOT_TIMEOUT", BOOT_TIMEOUTS[boot]), chosen("VMJOB_SILENCE_TIMEOUT", SILENCE)


def compose(job: Job, manifest: Manifest, granted: Granted, qemu: QemuInfo, accel: AccelChoice, files: RunFiles,
            link: Link, firmware_code: str = "", host_khz: int = 0, attempt: int = 1) -> VmSpec:
    """The machine of one run. ``firmware_code``: for an image that boots by UEFI; ``link``: from vm.net;
    ``host_khz``: from vm.probe, for emulation; ``attempt``: which boot of this run it is."""
    boot = boot_method(job, manifest)
    direct = boot is not Boot.DISK  # what each boot method needs is there, or the manifest was refused
    disks = tuple(zip(map(str, files.chain), formats(manifest)))
    arguments = cmdline.kernel_arguments(boot, accel.name, manifest.cmdline, host_khz) if direct else ""
    if direct and link.netdev:
        # no DHCP: what we put into the image sets the address at once
        arguments += " vmjob.net="
        arguments += f"{link.address}/{link.prefix},{link.gateway},{link.dns}" if link.address else ""
    return VmSpec(
        qemu=qemu.path, accel=accel.name, machine=cmdline.choose_machine(boot, qemu, accel.name, host_khz),
        cpus=granted.cpus, memory=granted.memory, boot=boot, name=f"vmjob-{job.name}",
        kernel=str(files.image["kernel"]) if direct else "",
        initrd=str(files.image["initrd"]) if direct else "",
        cmdline=arguments,
        firmware_code=firmware_code, firmware_vars=files.firmware_vars if firmware_code else "",
        overlay=files.overlay if disks else "", chain=disks,
        input_disk=files.input_disk, output_disk=files.output_disk if job.outputs else "",
        seed_disk=files.seed if boot is Boot.DISK else "",
        netdev=link.netdev, netdev_extra=link.extra, cpu_model=cmdline.cpu_model(accel.name, qemu.version, attempt))
