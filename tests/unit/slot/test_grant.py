"""Job, image and slot brought together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from vmjob.core.errors import JobError, ScratchFull, SlotTooSmall, WalltimeOver
from vmjob.core.model import Boot, ImageFile, Job, Manifest, Resources, Slot
from vmjob.slot.grant import OVERHEAD, grant, needed_memory

pytestmark = pytest.mark.unit

MIB, GIB = 2**20, 2**30
MANIFEST = Manifest("deb", (ImageFile("disk", "d", "qcow2", 1, "0" * 64),), (Boot.DISK,), needs_memory=256 * MIB)
BATCH = Slot("htcondor", Path("/s"), cpus=4, memory=4 * GIB, disk=20 * GIB, time_left=3600, batch=True,
             sources=("cpus=htcondor", "memory=cgroup", "disk=htcondor"))
LAPTOP = Slot("machine", Path("/s"), cpus=8, memory=16 * GIB, disk=100 * GIB,
              sources=("cpus=machine", "memory=machine", "disk=disk"))


def job(cpus: Optional[int] = None, memory: Optional[int] = None, disk: Optional[int] = None,
        walltime: Optional[int] = None) -> Job:
    return Job("j", "deb", ("true",), resources=Resources(cpus, memory, disk, walltime))


def test_batch_slot_is_used_whole() -> None:
    got = grant(BATCH, job(), MANIFEST)
    assert (got.cpus, got.disk, got.walltime) == (4, 20 * GIB, 3600)
    assert needed_memory(got.memory) <= BATCH.memory < needed_memory(got.memory + MIB)
    assert got.memory % MIB == 0


def test_plain_machine_is_used_modestly() -> None:
    got = grant(LAPTOP, job(), MANIFEST)
    assert (got.cpus, got.memory, got.disk, got.walltime) == (1, GIB, 10 * GIB, None)
    needy = replace(MANIFEST, needs_memory=3 * GIB, needs_cpus=2)
    assert grant(LAPTOP, job(), needy).memory == 3 * GIB and grant(LAPTOP, job(), needy).cpus == 2


def test_small_machine_gives_what_the_image_needs() -> None:
    small = replace(LAPTOP, memory=800 * MIB)
    got = grant(small, job(), MANIFEST)
    assert MANIFEST.needs_memory <= got.memory and needed_memory(got.memory) <= 800 * MIB


def test_requests_are_honoured() -> None:
    got = grant(BATCH, job(2, 1000 * MIB + 1, 5 * GIB, 600), MANIFEST)
    assert (got.cpus, got.memory, got.disk, got.walltime) == (2, 1001 * MIB, 5 * GIB, 600)
    assert grant(BATCH, job(walltime=9999), MANIFEST).walltime == 3600


def test_exactly_fitting_memory() -> None:
    fits = needed_memory(2 * GIB)
    assert grant(replace(BATCH, memory=fits), job(memory=2 * GIB), MANIFEST).memory == 2 * GIB
    with pytest.raises(SlotTooSmall):
        grant(replace(BATCH, memory=fits - 1), job(memory=2 * GIB), MANIFEST)


def test_too_little_memory_names_both_numbers_and_the_action() -> None:
    with pytest.raises(SlotTooSmall) as caught:
        grant(BATCH, job(memory=4 * GIB), MANIFEST)
    assert "4.2 GiB" in caught.value.message and "4.0 GiB" in caught.value.message
    assert "cgroup" in caught.value.message
    assert "request_memory = 4272" in caught.value.hint and "resources.memory" in caught.value.hint


def test_image_that_cannot_fit() -> None:
    with pytest.raises(SlotTooSmall) as caught:
        grant(replace(BATCH, memory=300 * MIB), job(), MANIFEST)
    assert "resources.memory" not in caught.value.hint  # asking for less would not help


def test_overhead_counts() -> None:
    assert grant(BATCH, job(), MANIFEST, OVERHEAD + 512 * MIB).memory < grant(BATCH, job(), MANIFEST).memory - 500 * MIB


@pytest.mark.parametrize(("wish", "error", "words"), [
    (job(cpus=5), SlotTooSmall, ("5 CPUs", "has 4")),
    (job(disk=21 * GIB), SlotTooSmall, ("21.0 GiB", "20.0 GiB")),
    (job(memory=100 * MIB), JobError, ("100 MiB", "256 MiB")),
])
def test_what_does_not_fit(wish: Job, error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        grant(BATCH, wish, MANIFEST)
    assert all(word in str(caught.value) for word in words) and caught.value.hint  # type: ignore[attr-defined]


def test_full_disk_is_transient() -> None:
    with pytest.raises(ScratchFull) as caught:
        grant(LAPTOP, job(disk=101 * GIB), MANIFEST)
    assert caught.value.transient


def test_no_time_left() -> None:
    with pytest.raises(WalltimeOver):
        grant(replace(BATCH, time_left=0), job(), MANIFEST)
