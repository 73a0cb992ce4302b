"""An image's file over HTTP on loopback, verified on the way, beside ``curl | sha256sum``."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, tool
from tests.servers import nginx
from vmjob.core.model import Boot, Fetcher, ImageFile, Manifest
from vmjob.image.store.copy import receive_file
from vmjob.stage.transfer.fetch import fetcher

_SIZE = 1 << 30


def measure(bench: Bench) -> list[Row]:
    for name in ("nginx", "curl", "sha256sum"):
        tool(name)
    os.environ["VMJOB_CACHE"] = str(bench.home / "cache")
    with bench.folder() as work:
        file = _make(work)
        with nginx(work) as server:
            def fetch() -> Fetcher:
                made = fetcher(Manifest("bench", (file,), (Boot.DISK,), sources=(server.url + "/",)), timeout=300)
                assert made
                return made

            def hashed() -> float:
                """The same work as the peer's: nothing is kept."""
                start, digest = time.perf_counter(), hashlib.sha256()
                for piece in fetch()(file, 0):
                    digest.update(piece)
                return _rate(start, digest.hexdigest(), file)

            def kept() -> float:
                start = time.perf_counter()
                receive_file(file, fetch(), work / "kept")
                rate = _rate(start, file.sha256, file)
                (work / "kept").unlink()
                return rate

            def curl(into: str = "") -> float:
                start = time.perf_counter()
                done = subprocess.run(["sh", "-c", f"curl -s {server.url}/disk.raw | {into} sha256sum"], cwd=work,
                                      capture_output=True, text=True, check=True)
                rate = _rate(start, done.stdout.split()[0], file)
                (work / "kept").unlink(missing_ok=True)
                return rate

            plain, peer, whole, tee = alternate(bench.rounds, hashed, curl, kept, lambda: curl("tee kept |"))
    return [Row("download of 1 GiB, verified", plain, peer, "MB/s", Goal("ratio", ">=", 0.9), "curl | sha256sum"),
            Row("the same, and kept on the disk", whole, tee, "MB/s", peer="curl | tee FILE | sha256sum")]


def _rate(start: float, digest: str, file: ImageFile) -> float:
    took = time.perf_counter() - start
    if digest != file.sha256:
        raise RuntimeError("other bytes came than were sent")
    return _SIZE / 1e6 / took


def _make(folder: Path) -> ImageFile:
    digest, piece = hashlib.sha256(), os.urandom(1 << 20)
    with (folder / "disk.raw").open("wb") as out:
        for number in range(_SIZE // len(piece)):
            data = number.to_bytes(8, "big") + piece[8:]
            out.write(data)
            digest.update(data)
    return ImageFile("disk", "disk.raw", "raw", _SIZE, digest.hexdigest(), _SIZE)
