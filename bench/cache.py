"""A node's cache: the disk that 16 VMs of one image take, and whether a start depends on how large the image is."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, execute
from bench.shim import Shim
from bench.verify import _verify as verify_stage
from vmjob.core.files import hash_file

_VMS = 16
_MIB = 1 << 20


def measure(bench: Bench) -> list[Row]:
    with bench.folder() as work:
        shim = Shim(work, real=False)
        payloads = {}
        for name, virtual, real in (("small", 64 * _MIB, 16 * _MIB), ("large", 10 * 10**9, 2 * 10**9)):
            image = work / name
            image.mkdir()
            _make(image, f"bench-{name}", virtual, real)
            payloads[name] = work / f"payload-{name}"
            # carried, so that a start finds everything here but what the cache has
            bench.vmjob("pack", "--image", image, "--network", "none", "-o", payloads[name], "--", "true",
                        env={"VMJOB_CACHE": str(work / "submit")})
        cache = work / "cache"
        for payload in (*payloads.values(), *payloads.values()):  # hashes both, once; and probes this new QEMU
            verify_stage(bench, payload, shim, cache)
        shim.forget()
        rounds = bench.rounds * 3
        large, small = alternate(
            rounds, lambda: 1000 * verify_stage(bench, payloads["large"], shim, cache),
            lambda: 1000 * verify_stage(bench, payloads["small"], shim, cache))
        if len(shim.log.read_text().splitlines()) < 2 * rounds:
            raise RuntimeError("not every image was verified: some of the runs did not start QEMU")
        sixteen, one = _disk(bench, work)
    return [Row("stage verify, warm: image of 10 GB (2 GB in it)", large, small, "ms", Goal("ours", "<=", 10),
                "an image of 64 MiB"),
            Row(f"disk that {_VMS} VMs of the 10 GB image take", sixteen / 1e6, one / 1e6, "MB",
                Goal("ratio", "<=", 1.05), "the image's own file")]


def _make(folder: Path, name: str, virtual: int, real: int) -> None:
    """A sparse qcow2 of random bytes, all over the disk; nothing ever boots it."""
    raw, disk = folder / "raw", folder / "disk.qcow2"
    pieces = real // _MIB
    with raw.open("wb") as file:
        file.truncate(virtual)
        for number in sorted(random.Random(0).sample(range(virtual // _MIB), pieces)):
            file.seek(number * _MIB)
            file.write(os.urandom(_MIB))
    execute(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    raw.unlink()
    digits, size = hash_file(disk)
    (folder / "manifest.yaml").write_text(json.dumps({
        "schema": 1, "name": name, "arch": "x86_64", "boot": ["disk"], "firmware": "bios",
        "files": [{"role": "disk", "path": disk.name, "format": "qcow2", "size": size, "sha256": digits,
                   "virtual_size": virtual}]}))


# What a slot does with an image before QEMU starts, in a process for each slot; they end together.
_SLOT = """
import sys
from pathlib import Path
from vmjob.image import manifest
from vmjob.image.store.images import Store
from vmjob.core.model import Fetcher
from vmjob.core.progress import Reporter
from vmjob.vm import disks
image, cache, run = map(Path, sys.argv[1:])
class Fetch(Fetcher):
    def __call__(self, file, start):
        with (image / file.path).open("rb") as source:
            source.seek(start)
            while piece := source.read(1 << 20):
                yield piece
one, store = manifest.load(image), Store(cache, cache=True)
run.mkdir(parents=True)
with store.hold(one):
    store.open(one, {}, Reporter(), Fetch(), run)
    disks.create_overlay(run / "overlay.qcow2", one.virtual_size)
    print("started", flush=True)
    sys.stdin.read()
"""


def _disk(bench: Bench, work: Path) -> tuple[int, int]:
    """Bytes on the disk of the cache and all overlays while 16 slots use the large image, and of its file."""
    import subprocess
    import sys

    image, place = work / "large", work / "sixteen"
    slots = [subprocess.Popen([sys.executable, "-c", _SLOT, image, place / "cache", place / "runs" / str(number)],
                              env=bench.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
             for number in range(_VMS)]
    try:
        for slot in slots:
            assert slot.stdout
            if slot.stdout.readline() != b"started\n":
                raise RuntimeError("a slot did not start")
        taken = sum(path.lstat().st_blocks * 512 for path in place.rglob("*"))
    finally:
        for slot in slots:
            slot.communicate()
    return taken, (image / "disk.qcow2").stat().st_blocks * 512
