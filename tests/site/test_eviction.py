"""Jobs of ``vmjob submit`` that are taken away, stopped, lost and cut off: the guest is told, nothing is left on a
node, what runs again starts clean, and each job ends once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Cli
from tests.site import jobs, knobs
from tests.site.jobs import AT_CE
from tests.site.layout import EXECUTE, HOSTS, NODE_CACHE
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob, result
from tests.site.witness import PROGRAM, Witness, eventually, remains, watching

pytestmark = [pytest.mark.site, pytest.mark.timeout(420)]

# a lost node is given up soon, and a guest that is silent for 8 s counts as hung
SHORT = "job_lease_duration: 20, environment: '\"VMJOB_SILENCE_TIMEOUT=8s\"'"
ON_N1, ON_N2 = (f"requirements: 'Machine == \"{node}.vmjob.test\"'" for node in ("n1", "n2"))
TARGETS = f"""
targets:
  ce: {{{{url: "condor-ce://{{ce}}"}}}}
  avoid: {{{{url: "condor-ce://{{ce}}", avoid: 5m, retries: 1}}}}
  short: {{{{url: "condor-ce://{{ce}}", avoid: 5s, submit: {{{{{SHORT}}}}}}}}}
  short-n1: {{{{url: "condor-ce://{{ce}}", avoid: 5s, submit: {{{{{SHORT}, {ON_N1}}}}}}}}}
  short-n2: {{{{url: "condor-ce://{{ce}}", avoid: 5s, submit: {{{{{SHORT}, {ON_N2}}}}}}}}}
  n1: {{{{url: "condor-ce://{{ce}}", submit: {{{{{ON_N1}}}}}}}}}
  vo: {{{{url: "condor-ce://ce.vmjob.test:9619", through: "condor://{{vo}}"}}}}
"""
QEMU = "/usr/bin/qemu-system-x86_64"
OTHER = {"n1": "n2", "n2": "n1"}


class Jobs:
    """Jobs that run PROGRAM, one for each name."""

    def __init__(self, vmjob: Vmjob, witness: Witness, to: str, names: tuple[str, ...], *options: object) -> None:
        self.vmjob, self.witness, self.to, self.names, self.site = vmjob, witness, to, names, vmjob.site
        (vmjob.cli.cwd / "program.sh").write_text(PROGRAM)
        (vmjob.cli.cwd / "names.csv").write_text("\n".join(["WHO", *names]) + "\n")
        done = vmjob("submit", "--to", to, "--json", "--image", "micro", "--memory", "256MiB", "--network", "nat",
                     "--from", "names.csv", "--name", vmjob.name(names[0]), "--input", "program.sh",
                     "--output", "notes", *options, "--", "sh", "program.sh")
        assert done.status == 0, done.err
        self.cluster = str(done.json["id"])
        self.payload = str(vmjob.jobs(self.cluster, to)[0]["payload"])

    def id(self, name: str) -> str:
        return f"{self.cluster}.{self.names.index(name)}"

    def tool(self, program: str, name: str) -> None:
        """One of HTCondor's own commands on a job."""
        jobs.tool(self.site, f"condor_{program}", *AT_CE, self.id(name))

    def ad(self, name: str, *attributes: str) -> dict[str, Any]:
        proc = self.names.index(name)
        return Pool(self.site).query(f"ClusterId == {self.cluster} && ProcId == {proc}", *attributes, "JobStatus")[0]

    def until(self, name: str, status: int, seconds: float = 120) -> None:
        eventually(lambda: self.ad(name)["JobStatus"] == status, seconds, lambda: self.ad(name, "HoldReason"))

    def log(self) -> str:
        """The jobs' common log, at the compute element."""
        return (HOSTS["ce"].folder / "spool" / self.payload.split("/spool/condor/")[1] / "vmjob.log").read_text()

    def events(self, name: str, *numbers: str) -> list[str]:
        """Of a job's log the events of these numbers (001 executing, 004 evicted, 005 ended, 009 removed), in order."""
        found = re.findall(r"^(\d\d\d) \(\d+\.0*(\d+)\.", self.log(), re.M)
        return [number for number, which in found if int(which) == self.names.index(name) and number in numbers]

    def let_go(self, name: str, number: int = 1) -> None:
        self.witness.started(name, number).let_go(self.site)

    def ends_once(self, *names: str, starts: int = 1, status: int = 0, notes: str = "started\nfinished\n") -> None:
        """The jobs end with ``status``; their results are those of the last start, and came once."""
        for name in names:
            waited = self.vmjob("wait", "--to", self.to, "--timeout", "3m", self.id(name), timeout=200)
            assert waited.status == status, (waited.err, self.ad(name, "HoldReason"))
            assert self.ad(name)["JobStatus"] == 4
            # the ad's NumJobStarts is not safe from a schedd's crash, the log is
            assert self.events(name, "005", "009") == ["005"] and len(self.events(name, "001")) == starts
            folder = self.vmjob.cli.cwd / f"{name}.out"
            fetched = self.vmjob("fetch", "--to", self.to, "-o", folder, self.id(name))
            assert fetched.status == status, fetched.err
            inner = folder if (folder / "result.json").exists() else folder / str(self.names.index(name))
            assert (inner / "notes").read_text() == notes and result(inner)["status"] == status


@pytest.fixture
def vmjob(cli: Cli, site: Site) -> Iterator[Vmjob]:
    made = Vmjob(cli, site)
    (cli.cwd / "config/vmjob/targets.yaml").write_text(TARGETS.format(ce=site.ce, vo=site.vo))
    yield made
    made.clean()
    eventually(lambda: not remains(site), 90, lambda: remains(site))


@pytest.fixture
def witness(site: Site) -> Iterator[Witness]:
    with watching(site) as found:
        yield found


# ---------------------------------------------------------------- what people do


def test_removed_vacated_suspended_held_and_out_of_time(vmjob: Vmjob, witness: Witness, site: Site) -> None:
    late = Jobs(vmjob, witness, "ce", ("late",), "--walltime", "45s")
    some = Jobs(vmjob, witness, "short", ("rm", "condor_rm", "vacate", "suspend", "hold"))
    first = {name: witness.started(name) for name in some.names}
    assert {"qemu-system-x86_64", "passt"} <= {p.program for p in first["rm"].processes(site)}

    some.tool("suspend", "suspend")
    some.until("suspend", 7)
    stopped, at = time.monotonic(), first["suspend"].lines
    some.tool("rm", "condor_rm")
    some.tool("vacate_job", "vacate")
    some.tool("hold", "hold")
    assert vmjob("rm", "--to", "short", some.id("rm")).status == 0
    for name in ("rm", "condor_rm", "vacate", "hold"):
        witness.gone(first[name])
        assert first[name].notes == ["started", "told"]
    assert [some.events(name, "001", "005", "009") for name in ("rm", "condor_rm")] == [["001", "009"]] * 2
    some.until("hold", 5)
    some.tool("release", "hold")

    assert first["suspend"].lines == at and first["suspend"].processes(site)
    time.sleep(max(0.0, stopped + 12 - time.monotonic()))  # longer than a guest may be silent
    assert first["suspend"].lines == at
    some.tool("continue", "suspend")
    eventually(lambda: len(first["suspend"].lines) > len(at) + 1)
    for name, number in (("suspend", 1), ("vacate", 2), ("hold", 2)):
        some.let_go(name, number)
    some.ends_once("suspend")
    some.ends_once("vacate", "hold", starts=2)

    late.until("late", 4)
    assert late.ad("late", "VmjobFailure")["VmjobFailure"] == "WalltimeOver"
    late.ends_once("late", status=224, notes="started\ntold\n")
    folder = vmjob.cli.cwd / "late.out"
    assert result(folder)["failure"]["kind"] == "WalltimeOver" and result(folder)["outputs"] == ["notes"]
    assert "told" in (folder / "stdout.txt").read_text()
    assert vmjob.queue() == []


# ---------------------------------------------------------------- what breaks


def test_killed_startd_starter_shadow_and_wrapper(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    """Attack killed_in_a_slot.

    Nothing lives on without them, and the job runs again, after vmjob itself was killed too."""
    here = Jobs(vmjob, witness, "short-n1", ("startd",))
    some = Jobs(vmjob, witness, "short-n2", ("starter", "shadow", "wrapper"))
    first = {name: witness.started(name) for name in (*here.names, *some.names)}
    [shadow] = [p.pid for p in broken.processes("ce") if p.program == "condor_shadow" and some.id("shadow") in p.argv]
    [wrapper] = [p.pid for p in first["wrapper"].processes(broken) if p.program.startswith("python3")]
    assert broken.kill("n1", "condor_startd") == 1
    for pid in (first["starter"].starter(broken), shadow, wrapper):
        os.kill(pid, signal.SIGKILL)
    for run in first.values():
        witness.gone(run)
    for jobs_of, name in ((here, "startd"), (some, "starter"), (some, "shadow"), (some, "wrapper")):
        jobs_of.let_go(name, 2)
        jobs_of.ends_once(name, starts=2)
    # the starter of a killed shadow waits for another, as long as the job's lease
    eventually(lambda: not remains(broken), 90, lambda: remains(broken))


def test_a_lost_node(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    some = Jobs(vmjob, witness, "short", ("lost",))
    first = witness.started("lost")
    broken.stop_host(first.node)
    assert witness.started("lost", 2, 180).node == OTHER[first.node]
    broken.start_host(first.node)
    witness.gone(first)
    some.let_go("lost", 2)
    some.ends_once("lost", starts=2)
    assert vmjob.queue() == []


def test_a_schedd_that_crashes_and_one_that_restarts(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    some = Jobs(vmjob, witness, "ce", ("schedd",))
    run = witness.started("schedd")

    def schedds() -> set[int]:
        return {p.pid for p in broken.processes("ce") if p.program == "condor_schedd"}

    def reconnects() -> Any:
        return some.ad("schedd", "NumJobReconnects").get("NumJobReconnects", 0)

    def end_schedd(number: signal.Signals, times: int) -> None:
        before = schedds()
        assert broken.kill("ce", "condor_schedd", number) == 1
        eventually(lambda: not before & schedds())
        broken.wait_until_ready()
        eventually(lambda: reconnects() == times, 120, reconnects)

    end_schedd(signal.SIGKILL, 1)
    end_schedd(signal.SIGTERM, 2)
    run.let_go(broken)
    some.ends_once("schedd")
    assert run.notes == ["started", "finished"] and vmjob.queue() == []


def test_a_network_cut_under_a_guest_and_under_a_fetch(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    """Neither begins anew; what happened meanwhile is told when the network is back."""
    link, cache = HOSTS["n1"].namespace, HOSTS["n1"].folder / "cache"
    guest = Jobs(vmjob, witness, "n1", ("guest",))
    run = witness.started("guest")
    assert run.node == "n1"
    broken.exec("n1", "root", ["sh", "-c", f"rm -rf {NODE_CACHE}/uid-*"]).check_returncode()
    slow = ["tc", "qdisc", "replace", "dev", link, "root", "tbf", "rate", "16mbit", "burst", "64kb", "latency", "400ms"]
    done = subprocess.run(slow, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a network that can be slow (sch_tbf): {done.stderr.strip()}")
    try:
        fetch = Jobs(vmjob, witness, "n1", ("fetch",))
        eventually(lambda: any(path.stat().st_size for path in cache.glob("uid-*/tmp/*")), 60)
        broken.cut("n1")
        began = time.monotonic()
    finally:
        subprocess.run(["tc", "qdisc", "delete", "dev", link, "root"], check=True)
    run.let_go(broken)
    eventually(lambda: "finished" in run.notes)
    time.sleep(max(0.0, began + 60 - time.monotonic()))
    assert fetch.ad("fetch", "VmjobStage")["VmjobStage"] == "verify" and not witness.of("fetch")[0].lines
    assert guest.ad("guest", "VmjobStage")["VmjobStage"] == "payload"
    broken.heal("n1")
    guest.until("guest", 4)
    assert guest.ad("guest", "VmjobOutcome")["VmjobOutcome"] == "ok"
    fetch.let_go("fetch")
    guest.ends_once("guest")
    fetch.until("fetch", 4)
    assert fetch.ad("fetch", "VmjobImageBytes")["VmjobImageBytes"] > 0
    fetch.ends_once("fetch")
    assert vmjob.queue() == []


# ---------------------------------------------------------------- nodes that cannot


def test_nodes_without_qemu_and_without_disk(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    broken.config("n2", "START = TARGET.NumJobStarts > 0\n")  # so each is tried on n1 first
    look = ["condor_status", "-pool", broken.ce, "-const", 'Machine == "n2.vmjob.test"', "-af:r", "Start"]
    eventually(lambda: "NumJobStarts" in jobs.tool(broken, *look), 60, lambda: jobs.tool(broken, *look))
    broken.hide("n1", QEMU)
    qemu = Jobs(vmjob, witness, "avoid", ("qemu",))
    eventually(lambda: qemu.events("qemu", "001") == ["001"] * 2)
    eventually(lambda: not list((HOSTS["n1"].folder / "state/execute").iterdir()))
    knobs.undo(HOSTS["n1"])
    for folder in (EXECUTE, NODE_CACHE):
        broken.small_scratch("n1", 8, folder)
    disk = Jobs(vmjob, witness, "avoid", ("disk",))
    for some, name in ((qemu, "qemu"), (disk, "disk")):
        witness.started_on(name, "n2").let_go(broken)
        some.until(name, 4)
        assert some.ad(name, "VmjobAvoid")["VmjobAvoid"] == "n1.vmjob.test"
        assert ("QemuMissing" if some is qemu else "ScratchFull") in some.log()
        some.ends_once(name, starts=2)

    knobs.undo(HOSTS["n1"])
    for node in OTHER:
        broken.hide(node, QEMU)
    none = Jobs(vmjob, witness, "avoid", ("none",))
    none.until("none", 5)
    ad = none.ad("none", "HoldReason", "NumJobStarts", "VmjobFailure", "VmjobAvoid")
    assert ad["NumJobStarts"] == 2 and re.match("QemuMissing: .* → .*", ad["HoldReason"]), ad
    assert set(ad["VmjobAvoid"].split(",")) == {f"{node}.vmjob.test" for node in OTHER}
    waited = vmjob("wait", "--to", "avoid", none.cluster)
    assert waited.status == 198 and "QemuMissing" in waited.err
    assert vmjob("rm", "--to", "avoid", none.cluster).status == 0 and vmjob.queue() == []


# ---------------------------------------------------------------- through the VO's own schedd


def test_grid_job_removed_and_cut_off(vmjob: Vmjob, witness: Witness, broken: Site) -> None:
    some = Jobs(vmjob, witness, "vo", ("gone", "cut"))
    try:
        gone, cut = witness.started("gone"), witness.started("cut")
        assert vmjob("rm", "--to", "vo", some.id("gone")).status == 0
        witness.gone(gone)
        assert gone.notes == ["started", "told"]
        left = f'VmjobName == "{vmjob.name("gone")}" && regexp("WHO=gone", Args)'
        eventually(lambda: Pool(broken).query(left) == [], 120, lambda: Pool(broken).query(left, "JobStatus"))
        broken.cut("vo")
        began = time.monotonic()
        cut.let_go(broken)
        witness.gone(cut)
        time.sleep(max(0.0, began + 10 - time.monotonic()))
        broken.heal("vo")
        vmjob("wait", "--to", "vo", "--timeout", "3m", some.id("cut"), timeout=200)
        [job] = [job for job in vmjob.jobs(some.cluster, "vo") if job["id"] == some.id("cut")]
        assert (job["state"], job["status"]) == ("done", 0), job
        folder = vmjob.cli.cwd / "out"
        assert vmjob("fetch", "--to", "vo", "-o", folder, some.cluster).status == 0
        assert (folder / "1/notes").read_text() == "started\nfinished\n" and cut.notes == ["started", "finished"]
        assert len(witness.of("gone")) == len(witness.of("cut")) == 1
    finally:
        broken.heal("vo")
        vmjob("rm", "--to", "vo", some.cluster)  # not there any more, if all went well
