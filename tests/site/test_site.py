"""The test site itself: jobs go the ways that vmjob's will, and what is broken is broken and mends."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.site import network
from tests.site.jobs import eventually
from tests.site.layout import HOSTS
from tests.site.site import Site

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

# In a process of its own: the bindings read CONDOR_CONFIG once.
SUBMIT = textwrap.dedent("""
    import json, sys, time
    import htcondor2
    pool, name, description = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    schedd = htcondor2.Schedd(htcondor2.Collector(pool).locate(htcondor2.DaemonType.Schedd, name))
    done = schedd.submit(htcondor2.Submit(description), spool=True)
    schedd.spool(done)
    this = f"ClusterId == {done.cluster()}"
    while True:
        ad = schedd.query(this, ["JobStatus", "HoldReason", "HoldReasonCode"])[0]
        if ad["JobStatus"] == 4:
            break
        if ad["JobStatus"] == 5 and ad["HoldReasonCode"] != 16:  # 16: the input is being spooled
            sys.exit(str(ad))
        time.sleep(0.3)
    schedd.retrieve(this)
    schedd.act(htcondor2.JobAction.Remove, this)
""")


def run(site: Site, folder: Path, pool: str, name: str, user: str, **more: str) -> str:
    """Submits a small job with the bindings, waits for it, fetches it; returns what it said."""
    script = folder / "job.sh"
    script.write_text('#!/bin/sh\necho "$(id -un) $(id -Gn) on $(hostname), cache $VMJOB_NODE_CACHE"\n')
    script.chmod(0o755)
    description = {"executable": str(script), "output": "out", "error": "err", "log": "log", "request_cpus": "1",
                   "request_memory": "100", "request_disk": "1000", "should_transfer_files": "YES", **more}
    done = subprocess.run([sys.executable, "-c", SUBMIT, pool, name, json.dumps(description)], cwd=folder,
                          env=site.environment(user), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return (folder / "out").read_text()


def test_a_spooled_job_runs_as_the_mapped_user(site: Site, tmp_path: Path) -> None:
    said = run(site, tmp_path, site.ce, "ce.vmjob.test", "alice")
    assert said.startswith("alice alice kvm on n")
    assert said.endswith("cache /var/lib/vmjob/cache\n")


def test_a_grid_job_goes_through_the_vo_and_runs_as_another(site: Site, tmp_path: Path) -> None:
    said = run(site, tmp_path, site.vo, "vo.vmjob.test", "alice", universe="grid",
               grid_resource="condor ce.vmjob.test ce.vmjob.test:9619")
    assert said.startswith("bob bob on n")


def test_tools_of_the_root_run_here(site: Site) -> None:
    done = subprocess.run(["condor_status", "-pool", site.ce, "-af", "Machine"], env=site.environment(),
                          capture_output=True, text=True, timeout=30)
    assert set(done.stdout.split()) == {"n1.vmjob.test", "n2.vmjob.test"}, done.stderr


def test_who_has_no_token_is_refused(site: Site, tmp_path: Path) -> None:
    env = {**site.environment(), "_CONDOR_SEC_TOKEN_DIRECTORY": str(tmp_path)}
    done = subprocess.run(["condor_status", "-pool", site.ce], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode and "n1.vmjob.test" not in done.stdout


def test_up_again_repairs(broken: Site) -> None:
    from tests.site import site as whole

    broken.stop_host("n1")
    assert not broken.processes("n1")
    whole.up()
    assert "condor_startd" in {p.program for p in broken.processes("n1")}


def test_a_killed_daemon_comes_back(broken: Site) -> None:
    [before] = [p.pid for p in broken.processes("n2") if p.program == "condor_startd"]
    assert broken.kill("n2", "condor_startd") == 1
    eventually(lambda: before not in [p.pid for p in broken.processes("n2")])
    eventually(lambda: "condor_startd" in [p.program for p in broken.processes("n2")])


def test_a_cut_host_is_out_of_reach(broken: Site) -> None:
    ping = ["python3", "-c", f"import socket; socket.create_connection(('{HOSTS['ce'].address}', 9619), 2)"]
    assert broken.exec("n1", "alice", ping).returncode == 0
    broken.cut("n1")
    assert broken.exec("n1", "alice", ping).returncode != 0
    broken.heal("n1")
    eventually(lambda: broken.exec("n1", "alice", ping).returncode == 0)


def test_configuration_is_reread(broken: Site) -> None:
    broken.config("n1", "START = False\nSTARTD_ATTRS = $(STARTD_ATTRS) Seen\nSeen = True\n")
    query = ["condor_status", "-pool", broken.ce, "-const", "Seen =?= True", "-af", "Machine"]
    eventually(lambda: "n1.vmjob.test" in subprocess.run(query, env=broken.environment(), capture_output=True,
                                                         text=True, timeout=30).stdout)


def test_a_shell_in_a_running_job(site: Site, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("executable = /bin/sleep\narguments = 60\ntransfer_executable = false\nqueue\n")
    env, there = site.environment(), ["-pool", site.ce, "-name", "ce.vmjob.test"]

    def tool(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = tool("condor_submit", "-spool", *there, "-terse", "job").split()[0]
    try:
        eventually(lambda: tool("condor_q", *there, job, "-af", "JobStatus").strip() == "2")
        # the queue learns the starter's address some seconds after the job runs, hence the retry
        assert tool("condor_ssh_to_job", "-auto-retry", *there, job, "id -un") == "alice\n"
    finally:
        tool("condor_rm", *there, job)


def test_nothing_of_a_host_outlives_its_processes(broken: Site) -> None:
    broken.stop_host("n1")
    assert network.processes(HOSTS["n1"]) == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(HOSTS["n1"].folder) not in mounts
