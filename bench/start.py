"""How quickly vmjob itself starts, and how much memory it adds to QEMU's."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from bench.common import Bench, Goal, Row, alternate, seconds
from bench.shim import Shim

_PYTHON = "/usr/bin/python3"  # what a node has


def measure(bench: Bench) -> list[Row]:
    python = [sys.executable, "-c", "pass"]
    shown, bare = alternate(max(bench.rounds, 11), lambda: seconds(bench.words("--help"), env=bench.environment()),
                            lambda: seconds(python))
    rows = [Row("vmjob --help", shown, bare, goal=Goal("ratio", "<=", 4), peer="python -c pass")]
    with bench.folder() as work:
        payload = work / "payload"
        pack = ("pack", "--image", "micro", "-o", payload, "--", "true")
        bench.vmjob(*pack)  # a checkout makes its vmjob.pyz
        packed, bare = alternate(max(bench.rounds, 11),
                                 lambda: seconds(bench.words(*pack), env=bench.environment()), lambda: seconds(python))
        rows.append(Row("vmjob pack of the micro image", packed, bare, goal=Goal("ours", "<=", 0.3),
                        peer="python -c pass"))
        shim = Shim(work, real=True)
        _wrapper(bench, payload, shim)  # the probe of this new QEMU
        peaks: list[float] = []

        def exec_time() -> float:
            found, peak = _wrapper(bench, payload, shim)
            peaks.append(peak)
            return found

        execed, started = alternate(bench.rounds, exec_time, lambda: seconds([_PYTHON, "-E", "-s", "-c", "pass"]))
    rows.append(Row("wrapper to QEMU's exec, warm probe", execed, started, goal=Goal("ours", "<=", 0.4),
                    peer="python3 -c pass"))
    rows.append(Row("worker's memory beyond QEMU (peak; Python and passt)", max(peaks), unit="MiB",
                    goal=Goal("ours", "<=", 60)))
    return rows


def _wrapper(bench: Bench, payload: Path, shim: Shim) -> tuple[float, float]:
    """Run the payload as a slot does; seconds until QEMU was executed, and the peak memory of the rest in MiB."""
    shim.forget()
    with bench.folder() as slot:
        start = time.time()
        env = bench.environment({**shim.environment, "VMJOB_PYTHON": _PYTHON, "PYTHONPATH": ""})
        process = subprocess.Popen(["sh", str(payload / "vmjob-wrapper.sh")], cwd=slot, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        peaks: dict[int, float] = {}
        qemus = set()  # before its exec a QEMU is a copy of Python, whose pages are counted already
        while process.poll() is None:
            for pid in [process.pid, *_children(process.pid)]:
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
                if _is_qemu(pid):
                    qemus.add(pid)
            time.sleep(0.02)
        _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the wrapper ended with {process.returncode}: {said.decode()[-300:]}")
    return shim.last().at - start, sum(peak for pid, peak in peaks.items() if pid not in qemus)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_qemu(pid: int) -> bool:
    try:
        return b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0-", 1)[0]
    except OSError:
        return False


def _peak(pid: int) -> float:
    """VmHWM of a process, in MiB."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) / 1024 if found else 0
