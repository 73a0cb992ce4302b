"""What HTCondor does with an ordinary job when something breaks below it, and what a test can break.

vmjob relies on these. How long each takes is the site's doing (config.py, and the jobs' lease of 20 seconds); in the
wild a lease is 40 minutes and reconnecting is tried every five.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.site import jobs
from tests.site.jobs import AT_CE, eventually, running
from tests.site.site import Site

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

QEMU = "/usr/bin/qemu-system-x86_64"
OTHER = {"n1": "n2", "n2": "n1"}


def starters(site: Site, node: str) -> int:
    return [p.program for p in site.processes(node)].count("condor_starter")


def ends_once(job: jobs.Job) -> None:
    job.end()
    eventually(lambda: job.status() == 4)
    assert len(job.notes("end")) == 1


@pytest.mark.parametrize(("where", "daemon"), [("node", "startd"), ("node", "starter"), ("ce", "shadow")])
def test_a_job_runs_again_when_a_daemon_of_its_is_killed(broken: Site, tmp_path: Path, where: str, daemon: str) -> None:
    """Its processes are gone at once. It is idle at once as well, but when the lease is over if it was the startd."""
    with running(broken, tmp_path) as job:
        [node] = job.notes("start")
        before = [p.pid for p in job.processes(node)]
        assert before
        assert broken.kill(node if where == "node" else "ce", f"condor_{daemon}") == 1
        eventually(lambda: not set(before) & {p.pid for p in broken.processes(node)}, 10)
        eventually(lambda: len(job.notes("start")) == 2)
        # not at once: a shell that has just forked is there twice for a moment
        eventually(lambda: len(job.processes("n1") + job.processes("n2")) == len(before))
        ends_once(job)
    # that of a killed shadow waits for another, until the lease is over
    eventually(lambda: starters(broken, node) == 0)


def test_a_job_of_a_lost_node_runs_again_elsewhere(broken: Site, tmp_path: Path) -> None:
    """When its lease is over, and the collector has forgotten the node: until then it is matched in vain."""
    with running(broken, tmp_path) as job:
        [node] = job.notes("start")
        broken.stop_host(node)
        eventually(lambda: len(job.notes("start")) == 2, 120)
        assert job.notes("start") == sorted([node, OTHER[node]])
        ends_once(job)


def test_a_job_survives_a_restart_of_the_schedd(broken: Site, tmp_path: Path) -> None:
    with running(broken, tmp_path) as job:
        [node] = job.notes("start")
        before = [p.pid for p in broken.processes("ce") if p.program == "condor_schedd"]
        broken.restart("ce", "schedd")
        eventually(lambda: before != [p.pid for p in broken.processes("ce") if p.program == "condor_schedd"])
        broken.wait_until_ready()
        eventually(lambda: job.attributes("NumJobReconnects") == ["1"])
        ends_once(job)
        assert job.notes("start") == [node]


def test_a_job_survives_the_crash_of_the_compute_element(broken: Site, tmp_path: Path) -> None:
    with running(broken, tmp_path) as job:
        [node] = job.notes("start")
        broken.stop_host("ce")
        broken.start_host("ce")
        broken.wait_until_ready()
        eventually(lambda: job.attributes("NumJobReconnects") == ["1"])
        ends_once(job)
        assert job.notes("start") == [node]


def test_a_job_survives_a_cut_and_ends_in_it(broken: Site, tmp_path: Path) -> None:
    """Neither side notices, as neither has anything to say: one of three minutes went the same."""
    with running(broken, tmp_path) as job:
        [node] = job.notes("start")
        broken.cut(node)
        job.end()
        eventually(lambda: job.notes("end") == [node])
        assert job.status() == 2
        broken.heal(node)
        eventually(lambda: job.status() == 4)
        assert (job.notes("start"), job.notes("end")) == ([node], [node])


def test_a_node_without_qemu(broken: Site) -> None:
    look = ["sh", "-c", f"test -e {QEMU}; echo $?; test -e /usr/bin/qemu-img; echo $?; test -e /usr/bin/env; echo $?"]
    broken.hide("n1", QEMU)
    broken.hide("n1", "/usr/bin/qemu-img")
    assert broken.exec("n1", "alice", look).stdout.split() == ["1", "1", "0"]
    assert broken.exec("n2", "alice", look).stdout.split() == ["0", "0", "0"]
    broken.mend()
    assert broken.exec("n1", "alice", look).stdout.split() == ["0", "0", "0"]


def test_a_job_finds_the_disk_full(broken: Site, tmp_path: Path) -> None:
    for node in OTHER:
        broken.small_scratch(node, 16)
    with running(broken, tmp_path, 'head -c 20M /dev/zero >file || echo full >>"$notes"') as job:
        eventually(lambda: job.notes("full") != [])
        ends_once(job)


def test_a_small_scratch_is_advertised_by_a_new_startd(broken: Site) -> None:
    """The disk is looked at when the startd starts; one that fills up later is not known to the pool."""
    broken.small_scratch("n1", 16)
    broken.restart("n1", "startd")
    size = ["condor_status", "-pool", broken.ce, "-const", 'Machine == "n1.vmjob.test"', "-af", "TotalSlotDisk"]
    eventually(lambda: 0 < float(jobs.tool(broken, *size) or 0) <= 16 << 10)
    broken.mend()
    broken.restart("n1", "startd")  # nor does it see that the disk is large again
    eventually(lambda: float(jobs.tool(broken, *size) or 0) > 16 << 10)


@pytest.mark.parametrize("limit", ["MAX_JOBS_PER_OWNER", "MAX_JOBS_PER_SUBMISSION", "MAX_JOBS_SUBMITTED"])
def test_a_full_schedd_refuses_all_of_a_submission(broken: Site, tmp_path: Path, limit: str) -> None:
    broken.config("ce", f"{limit} = 2\n")
    eventually(lambda: limit in broken.exec("ce", "root", ["condor_config_val", "-schedd", "-dump", limit]).stdout)
    queue = ("condor_q", *AT_CE, "-af", "ClusterId", "ProcId")
    before = jobs.tool(broken, *queue)  # vmjob's own tests leave the image that they share
    (tmp_path / "job").write_text("executable = /bin/true\ntransfer_executable = false\nqueue 3\n")
    with pytest.raises(RuntimeError, match=f"Number of submitted jobs would exceed {limit}"):
        jobs.tool(broken, "condor_submit", "-spool", *AT_CE, str(tmp_path / "job"))
    assert jobs.tool(broken, *queue) == before
    # the schedd acts by the old limit for a moment after it has read that there is none: not in the next test
    broken.mend()
    said: list[str] = []

    def taken() -> bool:
        try:
            said.append(jobs.tool(broken, "condor_submit", "-spool", *AT_CE, "-terse", str(tmp_path / "job")))
        except RuntimeError as error:
            return limit not in str(error)
        return True

    eventually(taken)
    jobs.tool(broken, "condor_rm", *AT_CE, said[0].split(".")[0])


def test_bytes_that_move_are_counted(site: Site, tmp_path: Path) -> None:
    size = 10 << 20
    with (tmp_path / "image").open("wb") as file:
        file.write(os.urandom(size))
    before = {node: site.traffic(node) for node in OTHER}
    with running(site, tmp_path, transfer_input_files=str(tmp_path / "image")) as job:
        [node] = job.notes("start")
        moved = {node: site.traffic(node)[0] - before[node][0] for node in OTHER}
        assert size < moved[node] < 1.05 * size
        assert moved[OTHER[node]] < 0.05 * size
        assert site.traffic(node)[1] - before[node][1] < 0.1 * size
