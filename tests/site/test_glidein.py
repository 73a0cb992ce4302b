"""Glide-ins: guests that went in through the compute element run jobs of the VO's own queue."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.site.jobs import eventually
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob, result
from tests.site.tokens import GLIDEIN_TOKEN
from tests.site.vo import Queue

pytestmark = [pytest.mark.site, pytest.mark.glidein, pytest.mark.image, pytest.mark.timeout(400)]

JOB = """\
name: {name}
image: worker
glidein:
  pool: {pool}
  token: {token}
  site: {tag}
  idle: {idle}
  longest_job: 1m
  start: '{start}'
  attributes: {{Flavour: "plain", Score: 7}}
resources: {{cpus: {cpus}, memory: 1GiB, disk: 2GiB, walltime: 10m}}
"""
WORK = """\
{ hostname; systemd-detect-virt; id -un; cat in.txt; } >facts.txt
echo "job $1"; sleep 1"""


class Glideins:
    """``vmjob submit`` of glide-ins to the compute element, and the VO's queue that they serve."""

    def __init__(self, vmjob: Vmjob, worker: str) -> None:
        assert worker == "worker"
        self.vmjob, self.site = vmjob, vmjob.site
        self.queue = Queue(vmjob.site, vmjob.tag)

    def submit(self, count: int, cpus: int = 2, idle: str = "15s") -> str:
        """The cluster at the compute element."""
        text = JOB.format(name=self.vmjob.name("pilots"), pool=self.site.vo, token=GLIDEIN_TOKEN, tag=self.vmjob.tag,
                          start=self.queue.start, cpus=cpus, idle=idle)
        (self.vmjob.cli.cwd / "pilot.yaml").write_text(text)
        done = self.vmjob("submit", "--to", "ce", "--json", "-n", count, "pilot.yaml")
        assert done.status == 0, done.err
        return str(done.json["id"])

    def results(self, cluster: str, count: int) -> list[dict[str, Any]]:
        """What came back of the glide-ins, when all have ended."""
        waited = self.vmjob("wait", "--to", "ce", "--timeout", "3m", cluster, timeout=200)
        assert waited.status == 0, waited.err
        out = self.vmjob.cli.cwd / "back"
        assert self.vmjob("fetch", "--to", "ce", "-o", out, cluster).status == 0
        return [result(folder) for folder in self.folders(count)]

    def folders(self, count: int) -> list[Path]:
        out = self.vmjob.cli.cwd / "back"
        return [out / str(number) for number in range(count)] if count > 1 else [out]


@pytest.fixture
def glideins(cli: Cli, site: Site, worker: str) -> Iterator[Glideins]:
    vmjob = Vmjob(cli, site)
    made = Glideins(vmjob, worker)
    yield made
    made.queue.end()
    vmjob.clean()


def test_forty_jobs_in_two_guests(glideins: Glideins) -> None:
    queue = glideins.queue
    queue.put("in.txt", "from the submit host\n")
    jobs = queue.submit(40, WORK, transfer_input_files="in.txt", transfer_output_files="facts.txt",
                        transfer_output_remaps='"facts.txt=facts-$(Process).txt"')
    cluster = glideins.submit(2)
    eventually(lambda: queue.states(jobs) == {"done": 40}, 240, lambda: queue.ads(jobs)[:5])
    found = glideins.results(cluster, 2)

    guests = {one["glidein"]["name"] for one in found}
    assert len(guests) == 2 and not guests & set(queue.workers())  # they have left the pool
    ads = queue.ads(jobs)
    assert all(ad["ExitCode"] == 0 and ad["NumJobStarts"] == 1 for ad in ads)
    assert {ad["LastRemoteHost"].partition("@")[2].split(".")[0] for ad in ads} == guests
    for number in range(40):
        name, virtual, user, *sent = queue.text(f"facts-{number}.txt").splitlines()
        assert name in guests and virtual in ("qemu", "kvm") and user.startswith("vmjob-slot")
        assert sent == ["from the submit host"] and queue.text(f"job-0.{number}.out") == f"job {number}\n"

    assert sum(one["glidein"]["jobs"] for one in found) == 40 and all(one["glidein"]["jobs"] for one in found)
    for one, folder in zip(found, glideins.folders(2)):
        assert one["outcome"] == "ok" and one["glidein"]["evicted"] == 0
        assert 0 < one["glidein"]["busy_seconds"] <= 2 * one["glidein"]["seconds"]
        assert {"MasterLog", "StartLog", "startd_history"} <= {path.name for path in (folder / "glidein").iterdir()}
    # the site saw two ordinary jobs
    site_ads = Pool(glideins.site).query(f"ClusterId == {cluster}", "JobUniverse", "Owner")
    history = Pool(glideins.site)._call("history", which=f"ClusterId == {cluster}", attributes=["ProcId"])
    assert len(site_ads) + len(history) == 2
    assert glideins.vmjob.queue() == []


def test_a_killed_guest_loses_no_job(glideins: Glideins) -> None:
    queue, site = glideins.queue, glideins.site
    jobs = queue.submit(6, "sleep 12")
    cluster = glideins.submit(2)
    eventually(lambda: len(queue.workers()) == 2 and queue.states(jobs)["running"] >= 3, 120, lambda: queue.ads(jobs))
    [node] = {job["node"] for job in glideins.vmjob.jobs(cluster) if job["id"] == f"{cluster}.0"}
    name = node.partition(".")[0]
    pids = [p.pid for p in site.processes(name) if p.program == "qemu-system-x86_64"]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: queue.states(jobs) == {"done": 6}, 240, lambda: queue.ads(jobs))
    ads = queue.ads(jobs)
    assert all(ad["ExitCode"] == 0 for ad in ads) and any(ad["NumShadowStarts"] > 1 for ad in ads)
    glideins.results(cluster, 2)
