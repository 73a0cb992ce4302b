"""What the VM gets: the job's wish, the image's needs and the slot's limits brought together. Pure."""

from __future__ import annotations

from typing import Optional

from vmjob.core.errors import JobError, ScratchFull, SlotTooSmall, WalltimeOver
from vmjob.core.model import TCG_BUFFER, Granted, Job, Manifest, Slot
from vmjob.core.units import GIB, MIB, format_size

# Beyond the guest's memory: QEMU's own code, buffers and heap, passt, and the worker's Python (60 MiB),
# all of which the batch system counts.
OVERHEAD = 160 * MIB
# With TCG there is the buffer of translated code too (-accel tcg,tb-size=…).
OVERHEAD_TCG = OVERHEAD + TCG_BUFFER
# Page tables and dirty bitmaps grow with the guest's memory: 8 bytes for each 4 KiB, on both sides.
_PER_MEMORY = 256

DEFAULT_MEMORY = 1 * GIB
DEFAULT_DISK = 10 * GIB
DEFAULT_CPUS = 1

_ASK = {"htcondor": "request_memory = {0} in the submit file", "slurm": "sbatch --mem={0}M",
        "pbs": "qsub -l mem={0}mb", "machine": "close other programs to free {0} MiB"}


def overhead_of(accel: str) -> int:
    """Bytes QEMU needs beside the guest's memory with ``accel`` (kvm or tcg)."""
    return OVERHEAD_TCG if accel == "tcg" else OVERHEAD


def needed_memory(memory: int, overhead: int = OVERHEAD) -> int:
    """Bytes the slot must have for a guest with ``memory`` bytes."""
    return memory + memory // _PER_MEMORY + overhead


def grant(slot: Slot, job: Job, manifest: Manifest, overhead: int = OVERHEAD) -> Granted:
    """What the VM gets, never more than the slot; bytes and seconds.

    The job's request; else all of a batch slot, or a modest share of a plain machine. ``overhead``: bytes
    QEMU needs beside the guest's memory, without the part that grows with it.
    Raises SlotTooSmall, ScratchFull (a machine's disk is too full), WalltimeOver, or JobError when the job
    asks for less than its image needs.
    """
    return Granted(cpus=_cpus(slot, job, manifest), memory=_memory(slot, job, manifest, overhead),
                   disk=_disk(slot, job), walltime=_walltime(slot, job))


def _cpus(slot: Slot, job: Job, manifest: Manifest) -> int:
    asked = job.resources.cpus
    if asked is not None and asked < manifest.needs_cpus:
        raise JobError(f"resources.cpus is {asked}, the image {manifest.name} needs {manifest.needs_cpus}",
                       f"set resources.cpus to at least {manifest.needs_cpus}")
    wanted = asked or (slot.cpus if slot.batch else max(DEFAULT_CPUS, manifest.needs_cpus))
    wanted = max(wanted, manifest.needs_cpus)
    if wanted > slot.cpus:
        who = "the job asks" if asked else f"the image {manifest.name} asks"
        raise SlotTooSmall(f"{who} for {wanted} CPUs, {_slot(slot, 'cpus')} has {slot.cpus}",
                           f"set resources.cpus to {slot.cpus} or less, or ask for a larger slot")
    return wanted


def _memory(slot: Slot, job: Job, manifest: Manifest, overhead: int) -> int:
    asked, least = job.resources.memory, manifest.needs_memory
    if asked is not None and asked < least:
        raise JobError(f"resources.memory is {format_size(asked)}, the image {manifest.name} needs "
                       f"{format_size(least)}", f"set resources.memory to at least {least // MIB}MiB")
    most = max(0, (slot.memory - overhead) * _PER_MEMORY // (_PER_MEMORY + 1)) // MIB * MIB
    if slot.guest_memory is not None:
        most = min(most, slot.guest_memory // MIB * MIB)
    if asked is None:
        asked = max(least, most if slot.batch else min(most, DEFAULT_MEMORY))
    # QEMU takes memory in whole MiB: rounded up, as a job may count on what it asked for
    wanted = -(-asked // MIB) * MIB
    whole = needed_memory(wanted, overhead)
    if whole > slot.memory:
        lower = f"set resources.memory to {most // MIB}MiB or less, or " if most >= least else ""
        larger = _ASK.get(slot.kind, _ASK["machine"]).format(-(-whole // MIB))
        raise SlotTooSmall(f"the VM takes {format_size(whole)} ({format_size(wanted)} memory and "
                           f"{format_size(whole - wanted)} for QEMU), {_slot(slot, 'memory')} has "
                           f"{format_size(slot.memory)}", f"{lower}ask for a larger slot: {larger}"
                           if slot.batch else f"{lower}{larger}")
    return wanted


def _disk(slot: Slot, job: Job) -> int:
    asked = job.resources.disk
    if asked is None:
        return slot.disk if slot.batch else min(slot.disk, DEFAULT_DISK)
    if asked > slot.disk:
        message = f"the job asks for {format_size(asked)} disk, {_slot(slot, 'disk')} has {format_size(slot.disk)}"
        if "disk=disk" in slot.sources:  # it is the free space that lacks; another node may have it
            raise ScratchFull(f"{message} free in {slot.scratch}", "free some space there, or lower resources.disk")
        raise SlotTooSmall(message, f"set resources.disk to {slot.disk // MIB}MiB or less, or ask for a larger slot")
    return asked


def _walltime(slot: Slot, job: Job) -> Optional[int]:
    known = [time for time in (job.resources.walltime, slot.time_left) if time is not None]
    if slot.time_left is not None and slot.time_left <= 0:
        raise WalltimeOver(f"{_slot(slot, 'time_left')} has no time left", "ask the batch system for more walltime")
    return min(known, default=None)


def _slot(slot: Slot, key: str) -> str:
    """The slot and who set this limit, for messages."""
    who = next((text.partition("=")[2] for text in slot.sources if text.startswith(f"{key}=")), "")
    name = "this machine" if not slot.batch else f"the {slot.kind} slot"
    return f"{name} (limit of {who})" if who not in ("", slot.kind, "machine", "disk") else name
