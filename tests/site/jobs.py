"""An ordinary job that runs until it is told to end, and keeps count where the node's crash does not reach."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.site.hosts import Process
from tests.site.layout import NODES
from tests.site.site import Site

SCRIPT = """\
#!/bin/sh
notes=$VMJOB_NODE_CACHE/{name}
echo start >>"$notes"
{work}
until [ -e "$notes.go" ]; do sleep 0.2; done
echo end >>"$notes"
"""
AT_CE = ["-pool", "ce.vmjob.test:9619", "-name", "ce.vmjob.test"]


@dataclass(frozen=True)
class Job:
    site: Site
    name: str  # in its processes' command lines
    number: str  # in the compute element's queue

    def attributes(self, *names: str) -> list[str]:
        """Of the job's ad, in the queue or in its history; "undefined" where it has none."""
        for program in ("condor_q", "condor_history"):
            said = tool(self.site, program, *AT_CE, self.number, "-af", *names).split()
            if said:
                return said
        return []

    def status(self) -> int:
        """1 idle, 2 running, 3 removed, 4 ended, 5 held."""
        return int(self.attributes("JobStatus")[0])

    def notes(self, what: str) -> list[str]:
        """Names of the nodes on which the job noted ``what`` ("start", "end"), one for each time."""
        return [node.name for node in NODES for line in _lines(node.folder / "cache" / self.name) if line == what]

    def processes(self, node: str) -> list[Process]:
        """The job's own on that node, its starter not among them."""
        return [p for p in self.site.processes(node) if any(self.name in word for word in p.argv)]

    def gone(self) -> bool:
        """Removes the job; whether that was possible (not while the schedd is down)."""
        try:
            tool(self.site, "condor_rm", *AT_CE, "-const", f"ClusterId == {self.number}")
        except RuntimeError:
            return False
        return True

    def end(self) -> None:
        for node in NODES:
            (node.folder / "cache" / f"{self.name}.go").touch()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def tool(site: Site, *words: str) -> str:
    """Runs one of HTCondor's as alice on this machine; what it printed."""
    done = subprocess.run(words, env=site.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


@contextmanager
def running(site: Site, folder: Path, work: str = "", **more: str) -> Iterator[Job]:
    """A job of alice's that runs on one of the nodes, gone from the queue afterwards. ``work``: shell lines that it
    begins with, may write to $notes; ``more`` goes into its description."""
    name = f"job-{folder.name}-{time.monotonic_ns()}"
    script = folder / f"{name}.sh"
    script.write_text(SCRIPT.format(name=name, work=work))
    words = {"executable": str(script), "log": "log", "output": "out", "request_memory": "100", "request_disk": "1000",
             "should_transfer_files": "YES", "job_lease_duration": "20", **more}
    description = folder / f"{name}.submit"
    description.write_text("".join(f"{key} = {value}\n" for key, value in words.items()) + "queue\n")
    said = tool(site, "condor_submit", "-spool", *AT_CE, "-terse", str(description))
    job = Job(site, name, said.split(".")[0])
    try:
        eventually(lambda: job.notes("start") != [])
        yield job
    finally:
        job.end()
        eventually(job.gone)


def eventually(what: Callable[[], bool], seconds: float = 240, instead: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {instead()}"
        time.sleep(0.2)
