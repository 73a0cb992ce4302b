"""What a run would submit and start, worked out by the same functions; nothing is started and no network touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vmjob.core import config
from vmjob.core.model import Accel, AccelChoice, Boot, Granted, Job, Payload, QemuInfo, Slot
from vmjob.core.progress import Reporter
from vmjob.job.boot import boot_method
from vmjob.run import compose


def plan(job: Job, scratch: Path, base: Path = Path()) -> dict[str, Any]:
    """The document that ``vmjob plan --json`` prints: payload, limits, accelerator, network, QEMU's command line, what
    the agent is told, and the cloud-init seed. Raises what a run would raise before it starts anything."""
    from vmjob.guest.script import job_script
    from vmjob.guest.seed import agent_text, user_data
    from vmjob.image.store import chain
    from vmjob.image.store.images import Store
    from vmjob.job.payload import payload_document
    from vmjob.job.resolve import lists_of
    from vmjob.slot.grant import grant, overhead_of
    from vmjob.slot.limits import detect
    from vmjob.stage.archive.collect import collect
    from vmjob.vm import firmware, net, probe
    from vmjob.vm.cmdline import command_line

    collect(job.inputs, base, scratch)
    store = Store(config.store_dir())
    manifest, paths = store.resolve(job.image)
    slot = detect(os.environ, scratch)
    qemu, accel = _remembered(job)
    granted = grant(slot, job, manifest, overhead_of(accel.name))
    link = net.plan(job.network, qemu)
    boot = boot_method(job, manifest)
    code = firmware.find_uefi().code if boot is Boot.DISK and manifest.firmware == "uefi" else ""
    files = compose.RunFiles(paths, "in.tar" if job.inputs else "", chain=chain.places(manifest, paths, store.blobs))
    spec = compose.compose(job, manifest, granted, qemu, accel, files, link, code,
                           probe.host_khz() if accel.name == "tcg" else 0)
    return {
        "payload": payload_document(Payload(job, manifest, paths, lists=lists_of(manifest, Reporter()))),
        "limits": {"cpus": granted.cpus, "memory": granted.memory, "disk": granted.disk, "walltime": granted.walltime,
                   "slot": slot.kind, "sources": list(slot.sources)},
        "accelerator": {"name": accel.name, "reason": accel.reason},
        "network": link.description,
        "qemu": command_line(spec),
        "guest": _told(job, base, granted, slot) if job.glidein else job_script(job),
        "seed": user_data(agent_text()) if boot is Boot.DISK else "",
    }


def _told(job: Job, base: Path, granted: Granted, slot: Slot) -> str:
    """What a glide-in's guest is told. Its token is looked at, and not shown."""
    import time

    from vmjob.guest.glidein import program
    from vmjob.guest.script import job_script
    from vmjob.job.resolve import token_of

    token_of(job, base)
    script, files = program(job, "", granted, slot, "vmjob-" + "0" * 8, granted.walltime, int(time.time()))
    return f"{job_script(script)}\n# condor_config\n{files['condor_config']}"


def _remembered(job: Job) -> tuple[QemuInfo, AccelChoice]:
    """What a probe would say, from what earlier probes of this boot found; else a plain assumption, said as one."""
    from vmjob.vm import probe

    known = probe.remembered(job.accel)
    if known:
        return known
    usual = QemuInfo("qemu-system-x86_64", (7, 2, 0), ("microvm", "q35"), ("stream", "user", "filter-redirector"))
    name = "tcg" if job.accel is Accel.TCG else "kvm"
    return usual, AccelChoice(name, "assumed, as this host has not been probed yet; vmjob doctor does that")
