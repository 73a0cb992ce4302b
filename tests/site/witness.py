"""Jobs of vmjob whose every start is watched from the nodes: what each guest said, and what it left behind."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.site import jobs
from tests.site.hosts import Process, of_jobs
from tests.site.layout import EXECUTE, NODES, USERS
from tests.site.site import Site

# It says what happens to it, and ends when it is let go. The last lines are its output.
PROGRAM = """\
note() { echo "$1"; echo "$1" >>notes; }
trap 'note told; trap "" TERM; exit 9' TERM
[ ! -e notes ] || note stale
note started
n=0
until [ -e go ]; do
    n=$((n + 1)); echo "line $n"
    sleep 1 & wait $!
done
note finished
"""


@dataclass(frozen=True)
class Run:
    """One start of a job on a node; what it says stays readable when its folder is gone."""

    name: str  # the job's parameter WHO
    node: str
    folder: Path  # the job's, on this machine
    out: BinaryIO = field(repr=False)
    at: float  # when it was seen, monotonic
    marks: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def inside(self) -> str:
        """The folder's name on the node."""
        return f"{EXECUTE}/{self.folder.name}"

    @property
    def lines(self) -> list[str]:
        return os.pread(self.out.fileno(), 1 << 20, 0).decode().splitlines()

    @property
    def notes(self) -> list[str]:
        return [line for line in self.lines if not line.startswith("line")]

    def error(self) -> str:
        path = self.folder / "_condor_stderr"
        return path.read_text() if path.exists() else ""

    def processes(self, site: Site) -> list[Process]:
        """What of this start still runs on its node: by the job's environment, and where a program has little of that
        by what HTCondor itself knows a job's processes by."""
        return of_jobs(site.processes(self.node), self.inside, self.marks)

    def starter(self, site: Site) -> int:
        """The process number of its condor_starter."""
        above = {int(Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[1])
                 for p in self.processes(site)}
        [found] = [p.pid for p in site.processes(self.node) if p.program == "condor_starter" and p.pid in above]
        return found

    def left(self, site: Site) -> list[str]:
        """Programs and folders that remain of it."""
        return [p.program for p in self.processes(site)] + [str(self.folder)] * self.folder.exists()

    def let_go(self, site: Site) -> None:
        """The program ends with 0 soon. Reaches the guest from beside the job, without a network."""
        [user] = [name for name, number in USERS.items() if number == self.folder.stat().st_uid]
        words = ["env", "-C", self.inside, f"_CONDOR_SCRATCH_DIR={self.inside}", "sh", "vmjob-wrapper.sh", "attach",
                 "shell"]
        done = site.exec(self.node, user, words, input="touch go\n", timeout=120)
        assert done.returncode == 0 or "has ended" in done.stderr, done.stderr  # perhaps before the shell


class Witness:
    """All starts on the nodes of jobs with a parameter WHO, in order."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.runs: list[Run] = []
        self._seen: set[tuple[int, int]] = set()
        self._over = threading.Event()

    def watch(self) -> None:
        while not self._over.wait(0.1):
            for node in NODES:
                for folder in sorted((node.folder / "state/execute").glob("dir_*")):
                    self._look(node.name, folder)

    def _look(self, node: str, folder: Path) -> None:
        try:
            who = re.search(r'--parameters=[^" ]*WHO=(\w+)', (folder / ".job.ad").read_text())
            out = (folder / "_condor_stdout").open("rb")
        except OSError:  # half made, or going
            return
        found = os.fstat(out.fileno())  # as long as it is open here, no other has its number
        if who and (found.st_dev, found.st_ino) not in self._seen:
            self._seen.add((found.st_dev, found.st_ino))
            self.runs.append(Run(who[1], node, folder, out, time.monotonic()))
        else:
            out.close()

    def of(self, name: str) -> list[Run]:
        return [run for run in self.runs if run.name == name]

    def started(self, name: str, number: int = 1, seconds: float = 120) -> Run:
        """The ``number``-th start of a job, as soon as its program runs."""
        eventually(lambda: len(self.of(name)) >= number and bool(self.of(name)[number - 1].lines), seconds,
                   lambda: [(run, run.lines, run.error()) for run in self.of(name)])
        return self.of(name)[number - 1]

    def started_on(self, name: str, node: str, seconds: float = 120) -> Run:
        """The first start of a job on that node, as soon as its program runs."""
        def found() -> list[Run]:
            return [run for run in self.of(name) if run.node == node and run.lines]

        eventually(lambda: bool(found()), seconds, lambda: [(run, run.error()) for run in self.of(name)])
        return found()[0]

    def gone(self, run: Run, seconds: float = 60) -> float:
        """Waits until nothing is left of a start; how long that took."""
        began = time.monotonic()
        eventually(lambda: not run.left(self.site), seconds, lambda: run.left(self.site))
        return time.monotonic() - began

    def close(self) -> None:
        self._over.set()
        for run in self.runs:
            run.out.close()


@contextmanager
def watching(site: Site) -> Iterator[Witness]:
    witness = Witness(site)
    thread = threading.Thread(target=witness.watch, daemon=True)
    thread.start()
    try:
        yield witness
    finally:
        witness._over.set()
        thread.join()
        witness.close()


def eventually(what: Callable[[], bool], seconds: float = 120, instead: Callable[[], object] = lambda: "") -> None:
    jobs.eventually(what, seconds, instead)


def remains(site: Site) -> list[str]:
    """What of any job is still on the nodes."""
    users = [p for node in NODES for p in site.processes(node.name) if p.user in USERS or p.program == "condor_starter"]
    folders = [path for node in NODES for path in (node.folder / "state/execute").iterdir()]
    return [f"{p.user}: {' '.join(p.argv)[:200]}" for p in users] + [str(path) for path in folders]
