"""``vmjob plan``: everything that run and pack would submit and start, printed. Starts nothing, uses no network."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from vmjob import compose, config
from vmjob.model import Accel, AccelChoice, Boot, Job, Payload, QemuInfo
from vmjob.units import format_duration, format_size


def show(job: Job, scratch: Path, as_json: bool) -> int:
    """Print the plan; returns the exit status. Raises what run would raise before it starts anything."""
    document = _plan(job, scratch)
    if as_json:
        print(json.dumps(document, indent=1))
        return 0
    limits = document["limits"]
    print("# payload")
    print(json.dumps(document["payload"], indent=1))
    walltime = f"{format_duration(limits['walltime'])} walltime" if limits["walltime"] else "no walltime"
    print(f"\n# limits: {limits['cpus']} CPUs, {format_size(limits['memory'])} memory, "
          f"{format_size(limits['disk'])} outputs, {walltime} (slot: {limits['slot']})")
    print(f"# accelerator: {document['accelerator']['name']}, {document['accelerator']['reason']}")
    print(f"# network: {document['network']}")
    print("\n# QEMU (started in a private folder of " + str(scratch) + ")")
    print(" \\\n  ".join(_lines(document["qemu"])))
    print("\n# what the agent in the guest is told")
    print(document["guest"], end="")
    if document["seed"]:
        print("\n# cloud-init seed, user-data")
        print(document["seed"], end="")
    return 0


def _plan(job: Job, scratch: Path) -> dict[str, Any]:
    from vmjob.guest.script import job_script
    from vmjob.guest.seed import agent_text, user_data
    from vmjob.image.store import Store
    from vmjob.payload import payload_document
    from vmjob.slot.grant import grant
    from vmjob.slot.limits import detect
    from vmjob.vm import firmware, net, probe
    from vmjob.vm.cmdline import command_line

    manifest, paths = Store(config.store_dir()).resolve(job.image)
    slot = detect(os.environ, scratch)
    granted = grant(slot, job, manifest)
    qemu, accel = _remembered(job)
    link = net.plan(job.network, qemu)
    boot = compose.boot_method(job, manifest)
    code = firmware.find_uefi().code if boot is Boot.DISK and manifest.firmware == "uefi" else ""
    files = compose.RunFiles(paths, "in.tar" if job.inputs else "")
    spec = compose.compose(job, manifest, granted, qemu, accel, files, link, code,
                           probe.host_khz() or 0 if accel.name == "tcg" else 0)
    return {
        "payload": payload_document(Payload(job, manifest, paths)),
        "limits": {"cpus": granted.cpus, "memory": granted.memory, "disk": granted.disk, "walltime": granted.walltime,
                   "slot": slot.kind, "sources": list(slot.sources)},
        "accelerator": {"name": accel.name, "reason": accel.reason},
        "network": link.description,
        "qemu": command_line(spec),
        "guest": job_script(job),
        "seed": user_data(agent_text()) if boot is Boot.DISK else "",
    }


def _remembered(job: Job) -> tuple[QemuInfo, AccelChoice]:
    """What a probe would say, from what earlier probes of this boot found; else a plain assumption, said as one."""
    from vmjob.vm import probe

    known = probe.remembered(job.accel)
    if known:
        return known
    usual = QemuInfo("qemu-system-x86_64", (7, 2, 0), ("microvm", "q35"), ("stream", "user", "filter-redirector"))
    name = "tcg" if job.accel is Accel.TCG else "kvm"
    return usual, AccelChoice(name, "assumed, as this host has not been probed yet; vmjob doctor does that")


def _lines(argv: list[str]) -> list[str]:
    """An option and its value on one line."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return lines
