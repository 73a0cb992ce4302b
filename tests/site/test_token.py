"""A glide-in's token on its way from the submit host into a slot: where it lies, who can read it, and that it goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, Done
from tests.site import secrets
from tests.site.jobs import eventually
from tests.site.layout import NODES
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob

pytestmark = [pytest.mark.site, pytest.mark.glidein, pytest.mark.timeout(240)]

JOB = """
image: micro
glidein: {{pool: "{vo}", token: secret, site: test{more}}}
resources: {{memory: 256MiB, walltime: 30m}}
"""
# No HTCondor, but begins and ends like one: this is about the token alone.
CONDOR = {
    "bin/condor_version": "echo '$CondorVersion: 23.9.6 2024-09-12 $'",
    "bin/condor_ping": "exit 0",
    "sbin/condor_master": '[ "$MODE" = die ] && exit 1; exec sleep 1000',
}


@dataclass(frozen=True)
class Glideins:
    vmjob: Vmjob
    token: str

    @property
    def cwd(self) -> Path:
        return self.vmjob.cli.cwd

    def submit(self, word: str, *args: Any, to: str = "ce", job: str = "job.yaml") -> Done:
        return self.vmjob("submit", "--json", "-vv", "--to", to, "--name", self.vmjob.name(word), *args, job)

    def places(self) -> set[str]:
        """Where the token is in the site, and here but for the user's own file."""
        return secrets.places(self.vmjob.site, self.token, self.cwd) - {str(self.cwd / "secret")}

    def names(self, host: str = "") -> list[str]:
        """Names of the files with it on that host, all hosts without."""
        found = [place for place in self.places() if place.startswith(host)]
        return sorted(place.rpartition("/")[2] for place in found)

    def running(self, cluster: str, number: int, to: str = "ce") -> None:
        """Wait until the job's program runs."""
        job, = (one for one in self.vmjob.jobs(cluster, to) if one["id"] == f"{cluster}.{number}")
        remote = job["grid_id"].rpartition(" ")[2] or job["id"]
        Pool(self.vmjob.site, "bob" if job["grid_id"] else "alice").until(
            f"ClusterId == {remote.partition('.')[0]} && ProcId == {remote.partition('.')[2]}",
            lambda ad: ad.get("VmjobStage") == "payload", "VmjobStage", seconds=120)

    def state(self, cluster: str, number: int, state: str, to: str = "ce") -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [job for job in self.vmjob.jobs(cluster, to) if job["id"] == f"{cluster}.{number}"]

        eventually(lambda: [job["state"] for job in found()] == [state], 120, found)
        return found()[0]


@pytest.fixture
def glideins(cli: Cli, site: Site) -> Iterator[Glideins]:
    vmjob, token = Vmjob(cli, site), secrets.beside_a_job(cli.cwd, CONDOR)
    (cli.cwd / "job.yaml").write_text(JOB.format(vo=site.vo, more=", condor: condor.tar"))
    (cli.cwd / "bare.yaml").write_text(JOB.format(vo=site.vo, more=""))
    made = Glideins(vmjob, token)
    yield made
    vmjob.clean()
    site.exec("vo", "ada", ["condor_rm", "-constraint", vmjob.ours])


def killed(site: Site, word: str) -> int:
    """kill -9 of what runs on the nodes with this in its command line, its starter left alone; how many."""
    count = 0
    for node in NODES:
        for process in site.processes(node.name):
            if "condor" not in process.program and any(word in one for one in process.argv):
                os.kill(process.pid, signal.SIGKILL)
                count += 1
    return count


def test_at_a_compute_element_it_is_for_its_owner_alone_until_the_job_is_over(glideins: Glideins, site: Site) -> None:
    (glideins.cwd / "t.csv").write_text("MODE\ndie\nwork\n")
    done = glideins.submit("direct", "--from", "t.csv")
    assert done.status == 0 and glideins.token not in done.err + done.out.decode(), done.err
    cluster = str(done.json["id"])
    glideins.state(cluster, 0, "done")
    glideins.running(cluster, 1)
    place, = glideins.places()
    host, _, path = place.partition(":/spool")
    path = f"/var/spool/condor{path}"
    assert host == "ce" and path.endswith("/token-1")
    assert secrets.modes(site, "ce", path) == ("alice", "600", "700")
    assert secrets.refused(site, "ce", "bob", path)
    Pool(site).act("Vacate", f"ClusterId == {cluster} && ProcId == 1")  # it runs again, with the same one
    eventually(lambda: glideins.vmjob.jobs(cluster)[1]["starts"] == 2, 90)
    glideins.running(cluster, 1)
    assert glideins.places() == {place}
    assert killed(site, path) > 0
    eventually(lambda: glideins.vmjob.jobs(cluster)[1]["state"] != "running", 60)
    assert glideins.names() == ["token-1"] and glideins.names("ce") == ["token-1"]
    assert glideins.vmjob("rm", cluster).status == 0
    assert glideins.places() == set()


def test_of_a_held_job_it_stays_and_without_it_the_job_says_what_to_do(glideins: Glideins, site: Site) -> None:
    done = glideins.submit("held", job="bare.yaml")
    assert done.status == 0, done.err
    cluster = str(done.json["id"])
    assert glideins.state(cluster, 0, "held")["failure"] == "CondorMissing"
    place, = glideins.places()
    assert site.exec("ce", "alice", ["rm", place.replace("ce:/spool", "/var/spool/condor")]).returncode == 0
    assert glideins.vmjob("release", cluster).status == 0
    eventually(lambda: glideins.vmjob.jobs(cluster)[0]["failure"] == "TokenRefused", 120)
    held = glideins.state(cluster, 0, "held")
    assert "the token is gone" in held["reason"] and "submit a new one" in held["reason"]
    assert glideins.places() == set()


def test_behind_the_vos_schedd_it_never_comes_to_a_node(glideins: Glideins, site: Site) -> None:
    (glideins.cwd / "t.csv").write_text("MODE\ndie\nwork\n")
    done = glideins.submit("grid", "--from", "t.csv", to="vo")
    assert done.status == 0, done.err
    cluster = str(done.json["id"])
    glideins.state(cluster, 0, "done", "vo")
    glideins.running(cluster, 1, "vo")
    assert glideins.names("ce") == ["token-1"] and glideins.names("vo") == ["token-0", "token-1"]
    assert len(glideins.places()) == 3
    for place in glideins.places():
        host, _, path = place.partition(":/spool")
        owner, mode, folder = secrets.modes(site, host, f"/var/spool/condor{path}")
        assert (owner, mode, folder) == ("bob" if host == "ce" else "ada", "600", "700")
    assert glideins.vmjob("rm", "--to", "vo", cluster).status == 0
    eventually(lambda: glideins.places() == set(), 60, glideins.places)


def test_where_it_travels_with_the_job_it_is_gone_before_the_guest_boots(glideins: Glideins) -> None:
    done = glideins.submit("with", "--set", "MODE=work", to="everywhere")
    assert done.status == 0, done.err
    cluster = str(done.json["id"])
    glideins.running(cluster, 0, "everywhere")
    assert glideins.names() == ["token-0"] == glideins.names("ce")
    assert glideins.vmjob("rm", "--to", "everywhere", cluster).status == 0
    assert glideins.places() == set()


def test_nothing_of_it_stays_of_a_submission_that_fails(glideins: Glideins) -> None:
    assert glideins.submit("many", "-n", 1001).status == 200
    assert glideins.submit("wrong", to="wrong").status == 200
    planned = glideins.vmjob("plan", "--to", "ce", "job.yaml")
    assert "/token-$(Process)" in planned.out.decode() and glideins.token not in planned.out.decode() + planned.err
    assert glideins.places() == set()
