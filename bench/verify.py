"""The digest of an image, beside what hashlib does with the same bytes in memory; and the second job's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, execute
from bench.shim import Shim

_SIZE = 1 << 30
_PIECE = os.urandom(1 << 20)


def measure(bench: Bench) -> list[Row]:
    with bench.folder() as work:
        image = work / "image"
        image.mkdir()
        _make(image)
        payload = work / "payload"
        bench.vmjob("image", "import", image)
        bench.vmjob("pack", "--image", "bench-verify", "--network", "none", "-o", payload, "--", "true")
        shim = Shim(work, real=False)
        _verify(bench, payload, shim, work / "cache")  # the probe of this new QEMU
        read: list[int] = []

        def ours() -> float:
            shutil.rmtree(work / "cache/verified", ignore_errors=True)  # as after a boot of the host
            return _SIZE / 1e6 / _verify(bench, payload, shim, work / "cache")

        rate, memory = alternate(bench.rounds, ours, _hashlib)
        first = shim.last().bytes_read
        for _ in range(bench.rounds):
            _verify(bench, payload, shim, work / "cache")
            read.append(shim.last().bytes_read)
        bench.vmjob("image", "rm", "bench-verify")
    if first < _SIZE:
        raise RuntimeError(f"the first verification read {first} bytes of {_SIZE}")
    return [Row("verification of 1 GiB, page cache warm", rate, memory, "MB/s", Goal("ratio", ">=", 0.8),
                "hashlib.sha256 in memory"),
            # what remains is Python reading its modules
            Row("read by a second job in the same boot, of what the first read", max(read) / 1e6, first / 1e6, "MB",
                Goal("ratio", "<=", 0.02), "the first job")]


def _make(folder: Path) -> None:
    """An image of incompressible bytes; nothing ever boots it."""
    digest = hashlib.sha256()
    with (folder / "disk.raw").open("wb") as file:
        for number in range(_SIZE // len(_PIECE)):
            piece = number.to_bytes(8, "big") + _PIECE[8:]
            file.write(piece)
            digest.update(piece)
    (folder / "manifest.yaml").write_text(json.dumps({
        "schema": 1, "name": "bench-verify", "arch": "x86_64", "boot": ["disk"], "firmware": "bios",
        "files": [{"role": "disk", "path": "disk.raw", "format": "raw", "size": _SIZE, "sha256": digest.hexdigest(),
                   "virtual_size": _SIZE}]}))


def _verify(bench: Bench, payload: Path, shim: Shim, cache: Path) -> float:
    """Seconds of the stage, as result.json tells them."""
    with bench.folder() as slot:
        execute(bench.words("slot-run", "--payload", payload), cwd=slot, check=False,
                env=bench.environment({**shim.environment, "VMJOB_CACHE": str(cache)}))
        stages = json.loads((slot / "result.json").read_text())["stages"]
    return next(float(stage["seconds"]) for stage in stages if stage["name"] == "verify")


def _hashlib() -> float:
    """MB/s."""
    piece, digest = _PIECE * 2, hashlib.sha256()
    start = time.perf_counter()
    for _ in range(_SIZE // len(piece)):
        digest.update(piece)
    return _SIZE / 1e6 / (time.perf_counter() - start)
