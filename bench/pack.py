"""A disk becomes a payload and a payload a bootable disk, beside the way of 2010: tar czf of the raw disk, untar."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, execute, seconds, tool
from bench.shim import Shim

_SIZE = 4 << 30
_USED = 400 << 20
_FROM = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/lib", "/usr/sbin")


def measure(bench: Bench) -> list[Row]:
    raw = disk(bench)
    image = ["import", "--name", "bench-pack", "--firmware", "bios", str(raw)]  # no loader is on it, so it cannot guess
    with bench.folder() as work:
        tgz, payload = work / "disk.tgz", work / "payload.tar"

        def ours() -> float:
            bench.vmjob("image", "rm", "bench-pack", check=False)
            payload.unlink(missing_ok=True)
            start = time.perf_counter()
            bench.vmjob("image", *image)
            bench.vmjob("pack", "--image", "bench-pack", "--network", "none", "-o", payload, "--", "true")
            return time.perf_counter() - start

        def other() -> float:
            return seconds(["tar", "czf", tgz, "-C", raw.parent, raw.name])

        packed, tarred = alternate(bench.rounds, ours, other)
        rows = [Row("pack 4 GiB ext4, 400 MB used: vmjob image import, then pack", packed, tarred,
                    goal=Goal("ratio", "<=", 0.1), peer="tar czf"),
                Row("bytes that travel", payload.stat().st_size / 1e6, tgz.stat().st_size / 1e6, "MB",
                    Goal("ratio", "<=", 1.1), "tar czf")]
        return rows + _unpack(bench, work, payload, tgz)


def _unpack(bench: Bench, work: Path, payload: Path, tgz: Path) -> list[Row]:
    """From a payload in a fresh slot, on a node that never saw the image, to an overlay that QEMU can boot.

    The times are vmjob's own of its stages and the overlay's as the file system tells it: start → overlay, less
    the verification (which has a row of its own); Python's start is in the wrapper's row.
    """
    shim = Shim(work, real=False)
    verify: list[float] = []
    slot = work / "slot"
    execute(["mkdir", slot])
    untarred = seconds(["tar", "xf", payload, "-C", slot])
    _slot_run(bench, slot, shim, work / "cache")  # the probe of this new QEMU

    def ours() -> float:
        for name in ("blobs", "verified", "tmp", "locks"):
            shutil.rmtree(work / "cache" / name, ignore_errors=True)
        ready, verified = _slot_run(bench, slot, shim, work / "cache")
        verify.append(verified)
        return ready

    def other() -> float:
        with bench.folder() as node:
            return seconds(["tar", "xzf", tgz, "-C", node])

    ready, tarred = alternate(bench.rounds, ours, other)
    return [Row("payload to bootable disk, without verification", ready, tarred, goal=Goal("ours", "<=", 0.05),
                peer="tar xzf"),
            Row("its verification, once per node and boot", statistics.median(verify)),
            Row("tar xf of a payload that came as one file", untarred)]


def _slot_run(bench: Bench, slot: Path, shim: Shim, cache: Path) -> tuple[float, float]:
    """Seconds from the start of the run to a complete overlay less the verification, and the verification."""
    shim.forget()
    env = bench.environment({**shim.environment, "VMJOB_CACHE": str(cache)})
    execute(bench.words("slot-run", "--payload", slot, "--results", slot), env=env, cwd=slot, check=False)
    result = json.loads((slot / "result.json").read_text())
    stages = {stage["name"]: stage["seconds"] for stage in result["stages"]}
    start = shim.last()
    if not start.disk_at:
        raise RuntimeError("the run made no overlay")
    return start.disk_at - result["started"] - stages["verify"], stages["verify"]


def disk(bench: Bench) -> Path:
    """The raw disk, made once: files of this Debian, as many as make 400 MB."""
    raw = bench.home / "disk.raw"
    if raw.exists():
        return raw
    with bench.folder() as work:
        tree, used = work / "tree", 0
        for top in _FROM:
            for folder, folders, names in os.walk(top):
                folders.sort()
                for name in sorted(names):
                    path = Path(folder, name)
                    if used >= _USED or path.is_symlink() or not path.is_file():
                        continue
                    target = tree / path.relative_to("/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target)
                    used += path.stat().st_size
        making = raw.with_suffix(".new")
        execute([tool("mkfs.ext4"), "-q", "-F", "-d", tree, making, f"{_SIZE // 1024}k"])
        making.rename(raw)
    return raw
