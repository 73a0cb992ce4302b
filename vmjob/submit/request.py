"""What a job asks of a batch system, and of a node. Pure."""

from __future__ import annotations

from vmjob.batch.description import Request
from vmjob.batch.nodes import Needs
from vmjob.core.glideins import SYSTEM_DISK
from vmjob.core.model import Job, Manifest

_SPARE_TIME = 15 * 60  # seconds beside the job's walltime: fetching the image, booting, the way back
_SPARE_DISK = 256 * 2**20  # bytes for the guest's own writes, where its image has a disk: 4 times as much


def memory_of(job: Job, manifest: Manifest) -> int:
    """Bytes of the guest's memory that are asked for. Pure."""
    from vmjob.slot.grant import DEFAULT_MEMORY

    return max(job.resources.memory or DEFAULT_MEMORY, manifest.needs_memory)


def request_of(job: Job, manifest: Manifest, extra_disk: int = 0) -> Request:
    """What one job asks of the batch system: its own wishes, or what its image needs, and what QEMU needs beside.
    ``extra_disk``: bytes that come with the job. The accelerator is the node's, so the larger overhead is asked for,
    unless the job insists on KVM. Pure."""
    from vmjob.core.model import Accel
    from vmjob.slot.grant import needed_memory, overhead_of

    wants = job.resources
    memory = memory_of(job, manifest)
    overhead = overhead_of("kvm" if job.accel is Accel.KVM else "tcg")
    own = _SPARE_DISK * (4 if manifest.file("disk") else 1)
    # the outputs are there as the guest's disk, unpacked, and packed again for the way back
    outputs = 3 * (wants.disk or 2**30) if job.outputs else wants.disk or 0
    if job.glidein:  # it returns logs only; what it asks for is for the jobs
        own, outputs = SYSTEM_DISK, wants.disk or 2**30
    return Request(cpus=max(wants.cpus or 1, manifest.needs_cpus), memory=needed_memory(memory, overhead),
                   disk=outputs + own + extra_disk,
                   walltime=wants.walltime + _SPARE_TIME if wants.walltime else None)


def node_needs(job: Job, manifest: Manifest) -> Needs:
    """What the job asks of nodes that say what they do with VMs. Pure."""
    from vmjob.core.model import Accel

    return Needs(memory_of(job, manifest), job.network.value, network_must=job.glidein is not None,
                 kvm=job.accel is Accel.KVM, emulated=job.accel is Accel.TCG)


def image_room(manifest: Manifest) -> int:
    """Bytes for the image: a node without a cache keeps it in the job's own scratch, and what other programs bring is
    there twice for a moment. Pure."""
    brought = any(source.startswith(("condor:", "davs:")) for source in manifest.sources)
    return manifest.size + brought * max(file.size for file in manifest.files)
