"""What becomes of glide-ins, and of the VO's jobs in them, when something is wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.conftest import Cli, Done, result_of
from tests.site import secrets, tokens
from tests.site.jobs import eventually
from tests.site.layout import HOSTS
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from tests.site.tokens import GLIDEIN_TOKEN
from tests.site.vo import Queue

pytestmark = [pytest.mark.site, pytest.mark.glidein, pytest.mark.image, pytest.mark.timeout(400)]

PROGRAMS = {f"condor_{name}" for name in ("master", "startd", "starter", "version", "ping", "mips", "kflops")}
SMALL = "{cpus: 1, memory: 768MiB, disk: 1GiB, walltime: 15m}"

class Guest:
    """``vmjob run`` of a glide-in on this machine, with the test's own jobs in the VO's queue. ``around``: words before
    the command, ``more``: keys of the job file."""

    def __init__(self, cli: Cli, site: Site, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.site, self.folder = site, folder
        self.vmjob = Vmjob(Cli(folder, cli.home), site)
        self.queue = Queue(site, self.vmjob.tag)
        self.token = GLIDEIN_TOKEN.read_text()
        self._process: Optional[subprocess.Popen[bytes]] = None

    def write(self, token: str = "", image: str = "worker", resources: str = "", environment: str = "{}",
              accel: str = "auto", **glidein: Any) -> Path:
        self.token = token or self.token
        secret = self.folder / "secret"
        secret.write_text(self.token)
        secret.chmod(0o600)
        words = {"pool": self.site.vo, "token": str(secret), "site": self.queue.tag, "start": self.queue.start,
                 "idle": "5m", "longest_job": "10s", **glidein}
        job = self.folder / "pilot.yaml"
        job.write_text(f"image: {image}\nglidein: {json.dumps(words)}\nenvironment: {environment}\naccel: {accel}\n"
                       f"resources: {{cpus: 2, memory: 1GiB, walltime: 15m{resources}}}\n")
        return job

    def start(self, *around: str, **more: Any) -> Guest:
        job = self.write(**more)
        cli = self.vmjob.cli
        (self.folder / "scratch").mkdir()
        words = [*around, sys.executable, "-m", "vmjob", "run", job.name]
        with (self.folder / "said").open("wb") as said:
            self._process = subprocess.Popen(words, cwd=self.folder, env=cli.environment(), stdin=subprocess.DEVNULL,
                                             stdout=said, stderr=said)
        return self

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def alive(self) -> None:
        assert self._process and self._process.poll() is None, self.said

    def says(self, text: str, seconds: float = 90) -> None:
        def there() -> bool:
            if text in self.said:
                return True
            self.alive()
            return False

        eventually(there, seconds, lambda: self.said)

    def tell(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def ends(self, seconds: float = 240) -> dict[str, Any]:
        """Its result, when it has ended; the token is nowhere."""
        assert self._process
        self._process.wait(seconds)
        assert {path.name for path in self.folder.rglob("*") if path.is_file() and self._holds(path)} == {"secret"}
        assert self.token.strip() not in self.said
        assert list((self.folder / "scratch").iterdir()) == []
        return result_of(self.folder / "pilot.out")

    def _holds(self, path: Path) -> bool:
        return self.token.strip()[-40:].encode() in path.read_bytes()

    def end(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.queue.end()

    def job(self, cluster: str, *attributes: str) -> dict[str, Any]:
        return self.queue.ads(cluster, *attributes)[0]

    def until(self, cluster: str, state: str, seconds: float = 90) -> dict[str, Any]:
        """The first job's ad, when it is in this state (as in vo.STATES)."""
        eventually(lambda: self.queue.states(cluster)[state] > 0, seconds,
                   lambda: (self.queue.ads(cluster), self.said))
        return self.job(cluster, "HoldReasonCode", "HoldReasonSubCode", "LastVacateTime")


Make = Callable[[str], Guest]


@pytest.fixture
def make(cli: Cli, site: Site, worker: str) -> Iterator[Make]:
    made: list[Guest] = []

    def one(name: str) -> Guest:
        made.append(Guest(cli, site, cli.cwd / name))
        return made[-1]

    yield one
    for guest in made:
        guest.end()


@pytest.fixture(scope="module")
def early(home: Path, site: Site, worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Guests that mostly wait: they run beside the other tests."""
    made: dict[str, Guest] = {}
    place = tmp_path_factory.mktemp("early")

    def one(name: str) -> Guest:
        if name not in made:
            made[name] = Guest(Cli(place, home), site, place / name)
        return made[name]

    yield one
    for guest in made.values():
        guest.end()


def failure_of(result: dict[str, Any]) -> tuple[str, str]:
    assert result["outcome"] == "failed" and result["failure"]["hint"], result
    return result["failure"]["kind"], result["failure"]["message"]


# ---------------------------------------------------------------- what runs beside the others


@pytest.fixture(scope="module", autouse=True)
def dying(early: Make) -> Guest:
    """A guest that takes jobs for 50 s, and sends them back 10 s later."""
    guest = early("dying").start(lifetime="60s", longest_job="10s", resources=", disk: 2GiB")
    guest.queue.submit(1, "trap 'exit 3' TERM; sleep 600 & wait")
    return guest


# Seconds. With 120 it takes 220 until all is well again, most of it TCP's own pause; seen by hand.
CUT = 45


@pytest.fixture(scope="module", autouse=True)
def cut(early: Make, site: Site) -> Iterator[tuple[threading.Thread, Guest, list[str]]]:
    """A guest that for a while cannot reach its pool: first with a job, and another comes meanwhile. On the host "ce",
    which needs the VO for nothing else."""
    guest, jobs = early("cut").start("ip", "netns", "exec", HOSTS["ce"].namespace), []

    def cut() -> None:
        jobs.append(guest.queue.submit(1, f"sleep {CUT // 2}"))
        guest.says(f"job {jobs[0]}.0 of", 180)
        time.sleep(3)  # it has begun
        site.wall("ce", "vo")
        jobs.append(guest.queue.submit(1, "true"))
        time.sleep(CUT)
        site.heal("ce")

    thread = threading.Thread(target=cut)
    thread.start()
    yield thread, guest, jobs
    thread.join()
    site.heal("ce")


def test_no_job_begins_when_the_pool_is_out_of_reach(make: Make, site: Site) -> None:
    """The packets of the node vanish on their way."""
    guest = make("walled")
    site.wall("n2", "vo")
    try:
        guest.start("ip", "netns", "exec", HOSTS["n2"].namespace, environment="{VMJOB_GLIDEIN_REACH: '6'}")
        kind, message = failure_of(guest.ends())
    finally:
        site.heal("n2")
    assert kind == "PoolOutOfReach" and f"{site.vo} was not reached within 6 s" in message


def test_a_pool_with_a_name_that_nobody_knows(make: Make) -> None:
    guest = make("name").start(pool="vo.nowhere.test", environment="{VMJOB_GLIDEIN_REACH: '2'}")
    kind, message = failure_of(guest.ends())
    assert kind == "PoolOutOfReach" and "no address of vo.nowhere.test" in message


@pytest.mark.parametrize("which, wrong", [
    ("forged", "forged"), ("other", "another pool: trust domain ce.vmjob.test"), ("readonly", "does not allow")])
def test_a_token_that_the_pool_refuses(make: Make, site: Site, which: str, wrong: str) -> None:
    token = {"forged": lambda: tokens.forged(site.root), "other": lambda: tokens.glidein(site.root, "ce"),
             "readonly": lambda: tokens.glidein(site.root, may=("READ",))}[which]()
    guest = make(which).start(token=token)
    result = guest.ends()
    kind, message = failure_of(result)
    assert kind == "TokenRefused" and wrong in message and result["status"] == 203
    assert "condor_token_create" in guest.said and guest.queue.workers() == {}


def test_an_expired_token_is_refused_before_anything_starts(make: Make, site: Site) -> None:
    guest = make("expired")
    job = guest.write(token=tokens.expired(site.root))
    for words in (["run", job], ["submit", "--to", "ce", job]):
        done: Done = guest.vmjob(*words)
        assert done.status == 203 and "expired" in done.err and guest.token not in done.err, done.err


def test_a_clock_that_is_not_the_pools(make: Make) -> None:
    # not by faketime: under it Python's time.sleep fails, now and then, with "Invalid argument"
    guest = make("clock")
    (guest.folder / "sitecustomize.py").write_text(
        "import time\n_right = time.time\ntime.time = lambda: _right() + 864000\n")
    path = f"{guest.folder}:{guest.vmjob.cli.environment()['PYTHONPATH']}"
    guest.start("env", f"PYTHONPATH={path}", accel="tcg")
    kind, message = failure_of(guest.ends())
    found = re.search(r"clock is (\d+) s ahead of the pool's", message)
    assert kind == "ClockWrong" and found and abs(int(found[1]) - 864000) < 120, message


def test_a_startd_that_ends_again_and_again(make: Make) -> None:
    guest = make("dying").start(attributes={"KILLING_TIMEOUT": "soon"})
    result = guest.ends()
    kind, message = failure_of(result)
    assert kind == "CondorFailed" and "KILLING_TIMEOUT" in message, message
    assert {"MasterLog", "StartLog"} <= {path.name for path in (guest.folder / "pilot.out/glidein").iterdir()}


def test_at_a_compute_element_the_reason_is_in_the_queue(cli: Cli, site: Site, worker: str) -> None:
    vmjob, token = Vmjob(cli, site), tokens.forged(site.root)
    (cli.cwd / "secret").write_text(token)
    (cli.cwd / "secret").chmod(0o600)
    (cli.cwd / "pilot.yaml").write_text(
        f"image: worker\nglidein: {{pool: '{site.vo}', token: secret, site: x}}\nresources: {SMALL}\n")
    try:
        done = vmjob("submit", "--to", "ce", "--json", "--name", vmjob.name("refused"), "pilot.yaml")
        assert done.status == 0, done.err
        cluster = str(done.json["id"])
        waited = vmjob.wait(cluster)
        assert waited.status == 198 and "TokenRefused" in waited.err and "forged" in waited.err, waited.err
        ad, = Pool(site).query(f"ClusterId == {cluster}", "HoldReason", "JobStatus")
        assert ad["JobStatus"] == 5 and ad["HoldReason"].startswith("TokenRefused: the glide-in: the pool did not sign")
        assert vmjob.jobs(cluster)[0]["failure"] == "TokenRefused"
        assert secrets.places(site, token, cli.cwd) == {str(cli.cwd / "secret")}
    finally:
        vmjob.clean()


def test_htcondor_as_a_tarball(make: Make, site: Site) -> None:
    """Of the site's own, in the layout of the tarballs that HTCondor's makers give out."""
    guest = make("tarball")
    with tarfile.open(guest.folder / "condor.tar.gz", "w:gz", compresslevel=1) as archive:
        for place, name in (("usr/bin", "bin"), ("usr/sbin", "sbin"), ("usr/libexec/condor", "libexec")):
            for path in sorted((site.root / place).iterdir()):
                if path.name in PROGRAMS:
                    archive.add(path, f"condor-23.9.6-x86_64/{name}/{path.name}")
    guest.start(condor="condor.tar.gz", idle="5s")
    result = guest.ends()
    assert result["outcome"] == "ok" and "no more work" in guest.said, guest.said
    log = (guest.folder / "pilot.out/glidein/StartLog").read_text()
    assert "** /var/lib/vmjob/condor/condor-23.9.6-x86_64/sbin/condor_startd" in log


# ---------------------------------------------------------------- jobs that take too much


def test_jobs_that_take_too_much_harm_nobody_else(make: Make) -> None:
    guest = make("hogs").start(resources=", disk: 1GiB")
    queue = guest.queue
    memory = queue.submit(1, "perl -e '$x = \"x\" x 700000000; sleep 99'")
    calm = queue.submit(1, "sleep 45; echo here >out.txt", transfer_output_files="out.txt")
    until_full = queue.submit(1, "dd if=/dev/zero of=big bs=1M count=3000 2>err; df -k . ; tail -n 1 err; sleep 300")
    killer = queue.submit(1, "kill -9 -1; kill -9 $PPID")
    guest.says("joined the pool")
    held = guest.until(memory, "held")
    assert held["HoldReasonCode"] == 34 and "memory" in held["HoldReason"], held
    guest.until(killer, "done")
    held = guest.until(until_full, "held")
    assert (held["HoldReasonCode"], held["HoldReasonSubCode"]) == (21, 104), held
    assert re.search(r"the job took \d+ MiB of disk; its share is \d+ MiB", held["HoldReason"])
    assert guest.until(calm, "done")["NumJobStarts"] == 1 and queue.text("out.txt") == "here\n"
    # it is told to end, and its job is back in the queue at once
    last = queue.submit(1, "echo begun; sleep 600", job_lease_duration="600", stream_output="true")
    newest = max(queue.folder.glob("job-*.submit"), key=lambda path: int(path.stem.partition("-")[2]))
    output = newest.with_suffix(".0.out")
    eventually(lambda: output.exists() and output.read_text() == "begun\n")
    guest.tell(signal.SIGTERM)
    result = guest.ends()
    guest.until(last, "idle", 30)
    assert failure_of(result)[0] == "Interrupted"
    assert (result["glidein"]["jobs"], result["glidein"]["evicted"]) == (2, 3), guest.said
    assert {"StartLog", "startd_history"} <= {path.name for path in (guest.folder / "pilot.out/glidein").iterdir()}


def test_told_to_end_at_the_compute_element(cli: Cli, site: Site, worker: str) -> None:
    vmjob = Vmjob(cli, site)
    queue = Queue(site, vmjob.tag)
    glidein = json.dumps({"pool": site.vo, "token": str(GLIDEIN_TOKEN), "site": queue.tag, "start": queue.start})
    (cli.cwd / "pilot.yaml").write_text(f"image: worker\nglidein: {glidein}\nresources: {SMALL}\n")
    try:
        submitted = vmjob("submit", "--to", "ce", "--json", "--name", vmjob.name("rm"), "pilot.yaml")
        job = queue.submit(1, "sleep 600", job_lease_duration="600")
        eventually(lambda: queue.states(job)["running"] == 1, 120, lambda: queue.ads(job))
        time.sleep(10)  # a job that begins in the second in which it is told to end waits for its lease: HTCondor's
        assert vmjob("rm", "--to", "ce", submitted.json["id"]).status == 0
        eventually(lambda: queue.states(job)["idle"] == 1, 60, lambda: queue.ads(job))
    finally:
        queue.end()
        vmjob.clean()


def test_at_the_end_of_its_time_jobs_go_back(dying: Guest) -> None:
    cluster = "".join(re.findall(r"job (\d+)\.0 of ada@vo.vmjob.test begins", dying.said)[:1])
    result = dying.ends()
    assert result["outcome"] == "ok" and (result["glidein"]["jobs"], result["glidein"]["evicted"]) == (0, 1), dying.said
    assert "time to retire" in dying.said
    ad = dying.job(cluster)
    assert ad["JobStatus"] == 1 and ad["NumJobStarts"] == 1, ad
    assert result["ended"] - result["started"] < 600  # the walltime is 15 minutes


def test_two_minutes_without_the_pool_and_a_new_collector(cut: tuple[threading.Thread, Guest, list[str]],
                                                         site: Site) -> None:
    thread, guest, jobs = cut
    thread.join()
    for job in jobs:
        guest.until(job, "done", 180)
    site.restart("vo", "collector")
    guest.until(guest.queue.submit(1, "true"), "done", 180)
    guest.tell(signal.SIGTERM)
    result = guest.ends()
    assert failure_of(result)[0] == "Interrupted" and result["glidein"]["jobs"] >= 3, guest.said
