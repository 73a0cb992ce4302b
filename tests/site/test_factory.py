"""vmjob glidein keep: glide-ins at the compute element for jobs that are idle in the VO's pool. The queues, the jobs
and the guests are real; in most of these is no HTCondor but what begins and ends like one, as this is about who sends
them."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.conftest import Cli, Done
from tests.site import secrets
from tests.site.jobs import AT_CE, eventually, tool
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from tests.site.tokens import GLIDEIN_TOKEN
from tests.site.vo import Queue
from vmjob.core.pool_errors import PoolFull

pytestmark = [pytest.mark.site, pytest.mark.glidein, pytest.mark.timeout(240)]

TARGETS = """
targets:
  ce: {{url: "condor-ce://{ce}", retries: 0}}
  full: {{url: "condor-ce://{ce}", submit: {{requirements: false}}}}
  vo: {{url: "condor-ce://ce.vmjob.test:9619", through: "condor://{vo}"}}
"""
JOB = """
name: {name}
image: micro
glidein: {{pool: "{vo}", token: secret, idle: 1s{more}}}
resources: {{memory: 256MiB, walltime: 30m, cpus: {cpus}}}
"""
LOG = "/run/vmjob/glidein/log"
CONDOR = {
    "bin/condor_version": "echo '$CondorVersion: 23.9.6 2024-09-12 $'",
    "bin/condor_ping": "exit 0",
    "sbin/condor_master": f"""[ "$MODE" != die ] || exit 1
echo 'have been claimed for' >{LOG}/StartLog
case $MODE in
live) exec sleep 1000 ;;
work)
	printf '%s\\n' 'JobDuration = 2.5' 'CpusProvisioned = 2' 'ToE = [ HowCode = 0; When = 7 ]' '*** one' \
		>{LOG}/startd_history ;;
esac
sleep 3""",
}
AT_VO = ["-pool", "vo.vmjob.test", "-name", "vo.vmjob.test"]


@dataclass(frozen=True)
class Factory:
    """A factory of the test's own, and the jobs in the VO's pool that ask for it."""

    vmjob: Vmjob
    secret: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.vmjob.tag

    @property
    def cwd(self) -> Path:
        return self.vmjob.cli.cwd

    @property
    def theirs(self) -> str:
        return f'FactoryTest == "{self.name}"'

    def write(self, more: str = "", mode: str = "", cpus: int = 1) -> None:
        """The job file; ``mode``: what its HTCondor does, empty for none in the guest."""
        text = JOB.format(name=self.name, vo=self.vmjob.site.vo, cpus=cpus,
                          more=f", condor: condor.tar{more}" if mode else more)
        (self.cwd / "w.yaml").write_text(text + (f"environment: {{MODE: {mode}}}\n" if mode else ""))

    def words(self, verb: str, *more: Any, to: str = "full") -> list[str]:
        return [*map(str, ("glidein", verb, "w.yaml", "--to", to, "--constraint", self.theirs, *more))]

    def __call__(self, verb: str, *more: Any, to: str = "full", env: Optional[dict[str, str]] = None) -> Done:
        return self.vmjob(*self.words(verb, *more, to=to), timeout=240, env=env)

    def once(self, *more: Any, to: str = "full") -> dict[str, Any]:
        done = self("keep", "--once", "--json", "--every", "1s", *more, to=to)
        assert done.status == 0, done.err
        return done.json

    def start(self, *more: Any, to: str = "full") -> subprocess.Popen[bytes]:
        process = self.vmjob.cli.start(*self.words("keep", "--every", "1s", *more, to=to))
        self.started.append(process)
        return process

    def jobs(self, number: int, cpus: int = 1) -> None:
        """Idle jobs in the VO's pool, that nobody else's glide-ins take."""
        words = {"executable": "/bin/true", "transfer_executable": "false", "request_cpus": cpus, "request_memory": 10,
                 "request_disk": 10, "requirements": f'TARGET.VmjobFactory == "{self.name}"',
                 "+FactoryTest": f'"{self.name}"'}
        path = self.cwd / "jobs.submit"
        path.write_text("".join(f"{key} = {value}\n" for key, value in words.items()) + f"queue {number}\n")
        tool(self.vmjob.site, "condor_submit", "-spool", *AT_VO, str(path))

        def idle() -> int:
            said = tool(self.vmjob.site, "condor_q", *AT_VO, "-allusers", "-constraint",
                        f"{self.theirs} && JobStatus == 1", "-af", "ClusterId")
            return len(said.split())

        eventually(lambda: idle() >= number)

    def no_jobs(self) -> None:
        with suppress(RuntimeError):  # there are none
            tool(self.vmjob.site, "condor_rm", *AT_VO, "-constraint", self.theirs)

    def queue(self) -> list[dict[str, Any]]:
        """Its glide-ins at the compute element."""
        return Pool(self.vmjob.site).query(
            f'regexp("^{self.name}-g", VmjobName ?: "") && VmjobFetched =!= true && JobStatus != 3',
            "ClusterId", "JobStatus", "VmjobName")

    def no_token(self) -> bool:
        return not secrets.places(self.vmjob.site, self.secret, self.cwd / "scratch")

    def log(self) -> list[dict[str, Any]]:
        path = self.cwd / f"{self.name}.glideins/glideins.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until_told(self, process: subprocess.Popen[bytes], text: str) -> None:
        """Reads what it says until that comes."""
        assert process.stderr
        said, deadline = b"", time.monotonic() + 90
        while text.encode() not in said:
            assert select.select([process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0], said.decode()
            line = os.read(process.stderr.fileno(), 65536)
            assert line, f"it has ended, and said: {said.decode()}"
            said += line


@pytest.fixture
def factory(cli: Cli, site: Site) -> Iterator[Factory]:
    vmjob = Vmjob(cli, site)
    (cli.cwd / "config/vmjob/targets.yaml").write_text(TARGETS.format(ce=site.ce, vo=site.vo))
    secret = secrets.beside_a_job(cli.cwd, CONDOR)
    made = Factory(vmjob, secret)
    made.write()
    yield made
    for process in made.started:  # of a test that failed
        process.kill()
        process.wait()
    vmjob.clean()
    made.no_jobs()
    site.exec("vo", "ada", ["condor_rm", "-constraint", vmjob.ours])


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(number)
    return process.communicate(timeout=60)[1].decode()


# ---------------------------------------------------------------- as many as are asked for


def test_as_many_as_the_jobs_ask_for_and_no_more_when_asked_again(factory: Factory) -> None:
    factory.write(cpus=2)
    factory.jobs(5)
    dry = factory("keep", "--once", "--dry-run", "--max", 9)
    assert b"5 idle jobs, 5 CPUs" in dry.out and b"would submit 3" in dry.out and factory.queue() == []
    first = factory.once("--max", 9)
    assert first["submitted"] == 3 and first["asked"]["jobs"] == 5 and len(factory.queue()) == 3
    second = factory.once("--max", 9)  # another process, that knows of the first one nothing
    assert second["submitted"] == 0 and second["glideins"]["waiting"] == 3 and len(factory.queue()) == 3
    assert len({ad["VmjobName"] for ad in factory.queue()}) == 1
    told = factory("status", "--json").json
    assert told["glideins"]["waiting"] == 3 and told["asked"]["cpus"] == 5
    head, line = factory("status").out.decode().splitlines()
    assert head.startswith("POOL") and line.split()[1:7] == ["5", "5", "0", "full", "3", "0"]


def test_within_the_limits(factory: Factory) -> None:
    factory.jobs(6)
    assert factory.once("--max", 9, "--most-at-once", 2)["submitted"] == 2
    full = factory.once("--max", 3)
    assert full["submitted"] == 1 and "--max is 3" in full["why"]
    assert factory.once("--max", 3)["submitted"] == 0 and len(factory.queue()) == 3


def test_jobs_that_are_gone_take_those_with_them_that_wait_but_for_min(factory: Factory) -> None:
    factory.jobs(3)
    process = factory.start("--max", 9, "--min", 1)
    eventually(lambda: len(factory.queue()) == 3)
    factory.no_jobs()
    eventually(lambda: len(factory.queue()) == 1)
    factory.until_told(process, "removed 2 that waited")
    said = end(process)
    assert process.returncode == 0 and "1 glide-in go" in said and len(factory.queue()) == 1


def test_jobs_that_no_glidein_of_ours_could_take(factory: Factory) -> None:
    factory.jobs(2, cpus=4)
    cycle = factory.once("--max", 9)
    assert cycle["submitted"] == 0 and cycle["asked"]["too_large"] == 2 and "too small" in cycle["why"]
    assert factory("keep", "--once", "--max", 9, "--schedd", "nobody.test").status == 191


def test_through_the_vos_own_schedd(factory: Factory) -> None:
    factory.write(mode="live")
    assert factory.once("--max", 3, "--min", 2, to="vo")["submitted"] == 2
    assert factory.once("--max", 3, "--min", 2, to="vo")["submitted"] == 0
    gone = factory("keep", "--drain", to="vo")
    assert gone.status == 0, gone.err


# ---------------------------------------------------------------- ended, killed, two of them


def test_signals_end_it_and_leave_its_glideins_and_drain_removes_those_that_wait(factory: Factory) -> None:
    factory.jobs(3)
    process = factory.start("--max", 9)
    eventually(lambda: len(factory.queue()) == 3)
    factory.until_told(process, "submitted 3")
    said = end(process, signal.SIGINT)
    assert process.returncode == 0 and "3 glide-ins go on" in said and "--drain" in said and "Traceback" not in said
    assert len(factory.queue()) == 3
    drained = factory("keep", "--drain")
    assert drained.status == 0 and "removed 3 that waited" in drained.err, drained.err
    assert factory.queue() == []


def test_killed_at_any_moment_and_started_again_it_neither_doubles_nor_forgets(factory: Factory) -> None:
    factory.jobs(4)
    dice = random.Random(4)
    for _ in range(8):
        process = factory.start("--max", 9)
        time.sleep(dice.uniform(0.2, 1.5))
        end(process, signal.SIGKILL)
        assert len(factory.queue()) in (0, 4)  # what is submitted comes whole, and once
    process = factory.start("--max", 9)
    eventually(lambda: len(factory.queue()) == 4)
    factory.no_jobs()
    eventually(lambda: factory.queue() == [])  # it knows them as its own
    end(process)
    # payloads that were sent when it was killed, ten minutes later
    old = f'VmjobHolds == "payload" && regexp("^{factory.name}-g", VmjobWhat)'
    factory.vmjob.site.exec("ce", "root", ["condor_qedit", "-constraint", old, "StageInFinish", "1"])
    assert factory("keep", "--drain").status == 0
    eventually(factory.no_token)


def test_no_token_stays_when_the_last_one_is_removed(factory: Factory) -> None:
    factory.once("--max", 2, "--min", 2)
    first, second = factory.queue()
    kept, = Pool(factory.vmjob.site).query(f'VmjobHolds == "payload" && regexp("^{factory.name}-g", VmjobWhat)',
                                           "VmjobKeepUntil")
    assert 7000 < int(kept["VmjobKeepUntil"].rpartition("+")[2]) <= 7200  # no longer than the token is good for
    assert factory.vmjob("rm", "--to", "full", f"{first['ClusterId']}.0").status == 0
    assert not factory.no_token()  # it is the other's
    assert factory.vmjob("rm", "--to", "full", f"{second['ClusterId']}.1").status == 0
    eventually(factory.no_token)


def test_drain_asks_nothing_of_the_pool(factory: Factory) -> None:
    factory.once("--max", 2, "--min", 2)
    (factory.cwd / "secret").unlink()
    done = factory("keep", "--drain", "--pool", "no-such-host.invalid")
    assert done.status == 0 and "removed 2 that waited" in done.err and "it has no glide-ins" in done.err, done.err
    assert factory.queue() == []
    eventually(factory.no_token)


def test_the_second_of_a_name_does_not_begin(factory: Factory) -> None:
    process = factory.start("--max", 9)
    factory.until_told(process, "no idle jobs")
    second = factory("keep", "--max", 9, "--once")
    assert second.status == 195 and "runs on this machine already" in second.err and "→" in second.err
    assert factory("keep", "--max", 9, "--once", to="ce").status == 195  # the same queue under another name
    assert factory("keep", "--max", 9, "--once", to="vo").status == 0
    end(process)
    assert factory("keep", "--max", 9, "--once").status == 0


# ---------------------------------------------------------------- what becomes of them


def test_what_worked_leaves_a_line_and_no_files(factory: Factory) -> None:
    factory.write(mode="work")
    process = factory.start("--max", 1, "--min", 1, to="ce")
    factory.until_told(process, "ended: 1 job, busy 5.00 s, on n")
    end(process, signal.SIGKILL)
    one = factory.log()[0]
    assert (one["outcome"], one["kind"], one["jobs"], one["busy_seconds"]) == ("ok", "", 1, 5.0), one
    assert [path.name for path in (factory.cwd / f"{factory.name}.glideins").iterdir()] == ["glideins.jsonl"]
    assert one["id"] not in [f"{ad['ClusterId']}.{ad['ProcId']}" for ad in factory.queue()]


def test_without_condor_in_the_image_waiting_changes_nothing(factory: Factory) -> None:
    factory.jobs(2)
    done = factory("keep", "--max", 9, "--every", "1s", to="ce")
    assert done.status == 215 and "as waiting changes nothing: CondorMissing" in done.err, done.err
    logs = factory.cwd / f"{factory.name}.glideins"
    failed = [one for one in factory.log() if one["kind"]]
    assert failed and all(one["kind"] == "CondorMissing" and one["status"] == 215 for one in failed)
    assert (factory.cwd / failed[0]["logs"] / "result.json").exists() and str(logs.name) in failed[0]["logs"]
    said: list[dict[str, Any]] = []

    def gave_up() -> bool:
        """Cron does not try each minute, nor while the other of the two has not ended yet."""
        said.append(factory("keep", "--max", 9, "--once", "--json", to="ce").json)
        assert said[-1]["submitted"] == 0, said[-1]
        return "it gave up" in said[-1]["why"]

    eventually(gave_up, 60, lambda: said[-1])


def test_a_site_that_fails_every_glidein(factory: Factory) -> None:
    factory.write(mode="die")
    factory.jobs(4)
    began = time.time()
    done = factory("keep", "--max", 2, "--every", "1s", "--backoff", "1s", "--give-up", 3, to="ce")
    assert done.status == 245, done.err
    assert "nothing is submitted for" in done.err and "one at a time after failures" in done.err
    assert "ends, after 3 failed tries in a row: CondorFailed" in done.err and "4 × CondorFailed" in done.err
    failed = [one for one in factory.log() if one["kind"]]
    assert [one["kind"] for one in failed] == ["CondorFailed"] * 4  # two, one, one
    assert len({one["submission"] for one in failed}) == 3 and factory.queue() == []
    assert failed[-1]["ended"] - began > 1 + 2  # the pauses


def test_one_that_runs_no_job_although_jobs_are_idle(factory: Factory) -> None:
    factory.write(mode="idle")
    factory.jobs(1)
    process = factory.start("--max", 1, "--give-up", 1, to="ce")
    factory.until_told(process, "no job ran")
    assert "better-analyze" in factory("status", to="ce").out.decode()
    end(process)
    one, = factory.log()
    assert process.returncode == 0 and one["vain"] and not one["kind"], one
    assert (factory.cwd / one["logs"] / "result.json").exists()


def test_one_that_the_site_holds_is_noted_and_removed(factory: Factory) -> None:
    factory.jobs(1)
    factory.once("--max", 1)
    held, = factory.queue()
    Pool(factory.vmjob.site).act("Hold", f"ClusterId == {held['ClusterId']}")
    cycle = factory.once("--max", 1)
    one, = cycle["ended"]
    assert one["kind"] == "JobHeld" and one["status"] == 198 and cycle["submitted"] == 0
    assert "nothing is submitted for" in cycle["why"] and factory.queue() == []
    assert factory.once("--max", 1)["ended"] == [] and len(factory.log()) == 1  # it is told once


def test_one_that_somebody_removes_is_noted(factory: Factory) -> None:
    factory.jobs(1)
    process = factory.start("--max", 1)
    eventually(lambda: len(factory.queue()) == 1)
    factory.until_told(process, "submitted 1")
    time.sleep(3)  # it has seen it in the queue
    Pool(factory.vmjob.site).act("Remove", f"ClusterId == {factory.queue()[0]['ClusterId']}")
    factory.until_told(process, "failed: Removed")
    assert factory.queue() == []  # and is not replaced at once
    end(process)


# ---------------------------------------------------------------- what bad input gets


@pytest.mark.parametrize("args, status, tells", [
    (["--max", 1, "--min", 2], 200, "--min 2 is more than --max 1"), (["--min", 2], 200, "how many"),
    (["--max", 1, "--to", "local"], 200, "no queue"), (["--max", 1, "--constraint", "a b"], 200, "no ClassAd"),
    (["--max", -1], 200, "too few"), (["--max", 1, "--most-at-once", 1001], 200, "too many"),
    (["--max", 1, "--every", "soon"], 200, "--every"),
    (["--max", 1, "--pool", "no-such-host.invalid"], 191, "cannot be reached")])
def test_what_can_be_known_before_is_told_before(factory: Factory, args: list[Any], status: int, tells: str) -> None:
    done = factory("keep", "--once", *args)
    assert done.status == status and tells in done.err and "→" in done.err and "Traceback" not in done.err, done.err


def test_a_job_that_is_no_glidein(factory: Factory) -> None:
    (factory.cwd / "w.yaml").write_text("image: micro\ncommand: [ls]\n")
    done = factory("keep", "--max", 1)
    assert done.status == 200 and "no glide-in" in done.err
    factory.write()
    (factory.cwd / "secret").unlink()
    assert factory("keep", "--max", 1).status == 200


def test_a_pool_that_does_not_know_us(factory: Factory, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir(mode=0o700)
    own = Path(factory.vmjob.cli.env["CONDOR_CONFIG"]).read_text()
    (tmp_path / "condor_config").write_text(f"{own}\nSEC_TOKEN_DIRECTORY = {tmp_path}/tokens\n")
    done = factory("keep", "--max", 1, env={"CONDOR_CONFIG": str(tmp_path / "condor_config")})
    assert done.status == 192 and "does not accept who we are" in done.err, done.err


def test_daemons_that_are_away_for_a_while(factory: Factory, broken: Site) -> None:
    factory.jobs(1)
    process = factory.start("--max", 3, "--min", 1, "--backoff", "1s")
    factory.until_told(process, "submitted 1")
    broken.stop_host("vo")
    factory.until_told(process, "cannot be reached")
    broken.start_host("vo")
    factory.until_told(process, "it goes on")
    broken.restart("ce", "schedd")  # it has another address then
    time.sleep(3)
    broken.wait_until_ready()
    factory.jobs(1)
    factory.until_told(process, "submitted 1")
    said = end(process)
    assert process.returncode == 0 and "Traceback" not in said and len(factory.queue()) == 2


def images(site: Site) -> int:
    """Jobs of alice's in the queue, when those of earlier tests have left it: only images stay."""
    pool = Pool(site)
    eventually(lambda: not pool.query('VmjobHolds =!= "image"', "ClusterId"))
    return len(pool.query('Owner == "alice" && JobStatus != 3', "ClusterId"))


def takes(site: Site, folder: Path, jobs: int) -> bool:
    """Whether the compute element would take so many more of alice's."""
    description = folder / "too-many"
    description.write_text(f"executable = /bin/true\ntransfer_executable = false\nqueue {jobs}\n")
    try:
        said = tool(site, "condor_submit", *AT_CE, "-spool", "-terse", str(description))
    except RuntimeError as error:
        assert "MAX_JOBS_PER_OWNER" in str(error)
        return False
    cluster = said.split(".")[0]
    tool(site, "condor_rm", *AT_CE, cluster)
    eventually(lambda: not Pool(site).query(f"ClusterId == {cluster}", "ClusterId"))
    return True


def limit(site: Site, folder: Path, jobs: int) -> None:
    """From now on alice may have so many jobs at the compute element, which acts by an old limit for some moments."""
    eventually(lambda: takes(site, folder, jobs + 1))
    site.config("ce", f"MAX_JOBS_PER_OWNER = {jobs}")
    eventually(lambda: not takes(site, folder, jobs + 1))


def test_a_schedd_that_is_full_is_asked_again(factory: Factory, broken: Site) -> None:
    limit(broken, factory.cwd, max(1, images(broken)))
    process = factory.start("--max", 4, "--min", 4, "--backoff", "1s")
    factory.until_told(process, "takes no more jobs")
    broken.config("ce", "")
    factory.until_told(process, "submitted 4")
    end(process)
    eventually(lambda: len(factory.queue()) == 4)


def test_a_submission_of_which_a_full_schedd_makes_no_job_yet_is_no_reason_for_another(factory: Factory,
                                                                                       broken: Site) -> None:
    assert factory.once("--max", 1, "--min", 1)["submitted"] == 1  # the image is there then
    assert factory("keep", "--drain").status == 0
    limit(broken, factory.cwd, images(broken) + 1)  # room for the payload alone
    # jobs that have left count for the limit until the schedd counts again
    eventually(lambda: factory("keep", "--once", "--every", "1s", "--max", 9, "--min", 4).status != PoolFull.status)
    again = factory.once("--max", 9, "--min", 4)
    assert again["submitted"] == 0 and again["glideins"]["waiting"] == 4 and factory.queue() == []
    broken.config("ce", "")
    eventually(lambda: len(factory.queue()) == 4)


@pytest.mark.image
@pytest.mark.timeout(600)  # the image is built in it, the first time
def test_real_ones_run_the_jobs_that_asked_for_them_and_leave(factory: Factory, worker: str) -> None:
    queue = Queue(factory.vmjob.site, factory.name)
    try:
        text = JOB.format(name=factory.name, vo=factory.vmjob.site.vo, cpus=2, more=f", start: '{queue.start}'")
        text = text.replace("image: micro", f"image: {worker}").replace("token: secret", f"token: {GLIDEIN_TOKEN}")
        (factory.cwd / "w.yaml").write_text(text.replace("idle: 1s", "idle: 15s").replace("256MiB", "1GiB"))
        jobs = queue.submit(6, "sleep 3; hostname", requirements=f'TARGET.VmjobFactory == "{factory.name}"',
                            **{"+FactoryTest": f'"{factory.name}"'})
        process = factory.start("--max", 2, to="ce")
        factory.until_told(process, "submitted 2")
        eventually(lambda: queue.states(jobs) == {"done": 6}, 150)
        eventually(lambda: sum(one["jobs"] for one in factory.log()) == 6, 120, factory.log)
        eventually(lambda: factory.queue() == [])
        assert "it has no glide-ins" in end(process)
        assert [one["kind"] for one in factory.log()] == ["", ""]  # nor more of them than were needed
    finally:
        queue.end()
