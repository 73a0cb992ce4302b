"""The files and the network of one boot, and the machine composed from them."""

from __future__ import annotations

import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path

from vmjob import compose, opened
from vmjob.model import Boot, Image, Network, VmSpec
from vmjob.outcome import Run
from vmjob.vm.net import Link

_TAR_ROOM = 4 * 2**20  # the archive's own headers and padding, beside the bytes that were promised


def prepare(this: Run, image: Image, folder: Path, stack: ExitStack) -> tuple[VmSpec, Link]:
    """Make in ``folder`` what the next boot of ``this`` needs; ``stack`` ends its network.

    Raises ImageRefused, ScratchFull, HostError, NetworkRefused.
    """
    from vmjob.guest import seed
    from vmjob.image import bootfiles
    from vmjob.vm import cmdline, disks, firmware, net, probe

    manifest = this.payload.manifest
    assert this.boot and this.granted and this.qemu and this.accel
    # absolute, as QEMU works in the run's folder
    paths = {role: path.absolute() for role, path in image.paths.items()}
    for file in manifest.files:
        bootfiles.check(file, paths[file.role], Path(opened.named(str(paths[file.role]))))
    archive = this.payload.input_archive
    chain = tuple(path.absolute() for path in image.chain)
    files = compose.RunFiles(paths, str(archive.absolute()) if archive else "", chain=chain)
    if chain:
        (folder / files.overlay).unlink(missing_ok=True)
        disks.create_overlay(folder / files.overlay, manifest.virtual_size)
    if this.job.outputs:
        disks.create_output_disk(folder / files.output_disk, this.granted.disk + _TAR_ROOM)
    link = stack.enter_context(net.network(this.job.network, this.qemu, folder, this.accounted))
    this.traffic += [link.traffic] if link.traffic else []
    this.network = link.description
    if this.job.network is Network.NAT and link.kind == "isolated":
        this.reporter.note(f"network: {link.description}")
    code = ""
    if this.boot is Boot.DISK:
        card = seed.network_config(cmdline.MAC, link.address and f"{link.address}/{link.prefix}", link.gateway,
                                   link.dns) if link.netdev else ""
        seed.write_seed(folder / files.seed, f"vmjob-{secrets.token_hex(8)}", card)
        if manifest.firmware == "uefi":
            code, variables = firmware.find_uefi()
            shutil.copyfile(variables, folder / files.firmware_vars)
    khz = probe.host_khz() if this.accel.name == "tcg" else 0
    return compose.compose(this.job, manifest, this.granted, this.qemu, this.accel, files, link, code, khz,
                           this.attempts), link
