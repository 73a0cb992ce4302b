"""Eight micro VMs at once, each a job of its own slot on one node: right results, and one copy of the image."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate
from bench.run import bare

_JOBS = 8


def measure(bench: Bench) -> list[Row]:
    with bench.folder() as work:
        payload, cache = work / "payload", work / "cache"
        script = 'sum=0; i=0; while [ $i -lt 1000 ]; do sum=$((sum + i * N)); i=$((i + 1)); done; echo $sum >sum'
        # the environment tells the jobs apart, so one payload each; the image's files in them are links
        for number in range(_JOBS):
            bench.vmjob("pack", "--image", "micro", "--output", "sum", "--env", f"N={number}",
                        "-o", payload / str(number), "--", "sh", "-c", script)
        sizes = sorted((file.stat().st_size for file in (payload / "0/image").iterdir()), reverse=True)
        right, copies = [], []

        def ours() -> float:
            start = time.perf_counter()
            jobs = []
            for number in range(_JOBS):
                slot = work / f"slot{number}"
                slot.mkdir(exist_ok=True)
                (slot / "sum").unlink(missing_ok=True)
                jobs.append(subprocess.Popen(
                    ["sh", str(payload / str(number) / "vmjob-wrapper.sh")], cwd=slot, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=bench.environment({"VMJOB_CACHE": str(cache)})))
            most = 0
            while any(job.poll() is None for job in jobs):
                most = max(most, _copies([work, bench.home / "store"], sizes[0]))
                time.sleep(0.1)
            took = time.perf_counter() - start
            copies.append(most)
            right.append(sum(_answer(work / f"slot{number}") == number * 499500 for number in range(_JOBS)))
            return took

        argv = bare(bench, work)

        def other() -> float:
            start = time.perf_counter()
            guests = [subprocess.Popen(argv, stdin=subprocess.DEVNULL) for _ in range(_JOBS)]
            for guest in guests:
                guest.wait(timeout=120)
            return time.perf_counter() - start

        took, plain = alternate(bench.rounds, ours, other)
    return [Row(f"{_JOBS} micro VMs at once: right results", min(right), _JOBS, "jobs", Goal("ratio", ">=", 1), "all"),
            Row(f"{_JOBS} micro VMs at once: copies of the image on disk", max(copies), unit="copies",
                goal=Goal("ours", "<=", 1)),
            Row(f"{_JOBS} micro VMs at once: time", took, plain, peer=f"{_JOBS} bare QEMUs to poweroff")]


def _answer(slot: Path) -> int:
    try:
        return int((slot / "sum").read_text())
    except (OSError, ValueError):
        return -1


def _copies(folders: list[Path], size: int) -> int:
    """How many different files of this very size there are: links to one are one."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                known = path.lstat()
            except OSError:
                continue
            if known.st_size == size:
                found.add((known.st_dev, known.st_ino))
    return len(found)
