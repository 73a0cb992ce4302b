"""Jobs in the VO's own queue: what glide-ins are for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.site.layout import HOSTS
from tests.site.site import Site

STATES = {1: "idle", 2: "running", 3: "removed", 4: "done", 5: "held"}


class Queue:
    """Ada's jobs for the glide-ins of one test: these have GLIDEIN_Site = ``tag``, and take no others (``START``)."""

    def __init__(self, site: Site, tag: str) -> None:
        self.site, self.tag = site, tag
        self.folder = HOSTS["vo"].folder / "home/ada" / tag
        self.start = f'TARGET.VmjobTest == "{tag}"'
        self._run("mkdir", "-p", tag)

    def _run(self, *words: str, check: bool = True) -> str:
        done = self.site.exec("vo", "ada", ["sh", "-c", 'cd "$HOME"; exec "$@"', "sh", *words])
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return str(done.stdout)

    def put(self, name: str, text: str) -> None:
        """A file beside the jobs."""
        self._run("sh", "-c", 'printf %s "$2" >"$1"; chmod 755 "$1"', "sh", f"{self.tag}/{name}", text)

    def submit(self, count: int, script: str, **lines: str) -> str:
        """Jobs that run ``script`` with their number as argument: the cluster. The script's stdout is N.out."""
        name = f"job-{len(list(self.folder.glob('job-*')))}"
        self.put(f"{name}.sh", f"#!/bin/sh\n{script}\n")
        words = {"executable": f"{name}.sh", "arguments": "$(Process)", "output": f"{name}.$(Process).out",
                 "error": f"{name}.$(Process).err", "log": f"{name}.log", "should_transfer_files": "YES",
                 "when_to_transfer_output": "ON_EXIT", "request_cpus": "1", "request_memory": "64",
                 "request_disk": "1000", "requirements": f'TARGET.GLIDEIN_Site == "{self.tag}"',
                 "job_lease_duration": "20", "leave_in_queue": "true", "+VmjobTest": f'"{self.tag}"', **lines}
        self.put(f"{name}.submit", "".join(f"{key} = {value}\n" for key, value in words.items()) + f"queue {count}\n")
        said = self._run("sh", "-c", 'cd "$1" && condor_submit -terse "$2"', "sh", self.tag, f"{name}.submit")
        return said.split(".")[0]

    def ads(self, cluster: str, *attributes: str) -> list[dict[str, Any]]:
        said = self._run("condor_q", cluster, "-json", "-attributes",
                         ",".join(["JobStatus", "ProcId", "LastRemoteHost", "RemoteHost", "NumJobStarts", "ExitCode",
                                   "HoldReason", "NumShadowStarts", *attributes]))
        return sorted(json.loads(said or "[]"), key=lambda ad: ad["ProcId"])

    def states(self, cluster: str) -> Counter[str]:
        return Counter(STATES.get(ad["JobStatus"], "?") for ad in self.ads(cluster))

    def text(self, name: str) -> str:
        path: Path = self.folder / name
        return path.read_text()

    def workers(self) -> dict[str, dict[str, Any]]:
        """Our glide-ins in the pool: the partitionable slots' ads by the machine's name."""
        said = self._run("condor_status", "-json", "-constraint",
                         f'GLIDEIN_Site == "{self.tag}" && PartitionableSlot')
        return {ad["Machine"].split(".")[0]: ad for ad in json.loads(said or "[]")}

    def end(self) -> None:
        self._run("condor_rm", "-constraint", f'VmjobTest == "{self.tag}"', check=False)
        self._run("condor_rm", "-forcex", "-constraint", f'VmjobTest == "{self.tag}"', check=False)
