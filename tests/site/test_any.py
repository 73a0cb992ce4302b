"""vmjob submit --to any, between two sites of real daemons that say of themselves what they have."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Cli
from tests.site.jobs import eventually
from tests.site.pool import Pool
from tests.site.site import Site
from tests.site.test_submit import Vmjob
from vmjob.ads.site_ad import Element, Nodes, SiteAd, SiteImage, to_json

pytest.importorskip("classad2", reason="needs HTCondor's Python bindings: pip install htcondor")
classad = pytest.importorskip("cemon_publisher.render.classad")

pytestmark = [pytest.mark.site, pytest.mark.timeout(180)]

GIB = 2**30
CHECK = """\
import sys
from vmjob.batch import reach, targets
from vmjob.core.progress import Reporter
reach.check(targets.at(sys.argv[1]), Reporter(), float(sys.argv[2]))
"""


class Any2(Vmjob):
    """A user of both sites: one has the image, the other lets the VO bring its own."""

    def publish(self) -> None:
        digest = self("image", "inspect", "micro", "--json").json["digest"]
        images = (SiteImage("micro", digest, ("star",)),)
        for host, ad in (("ce", self.site_ad("WITH", "ce", self.site.ce, images=images)),
                         ("c2", self.site_ad("WITHOUT", "c2", self.site.c2, unlisted=("star",)))):
            self.site.config(host, classad.render(ad))
        eventually(lambda: len(self("sites", *self.sources("--from"), "--fresh", "--json").json["sites"]) == 2, 30)

    @staticmethod
    def site_ad(name: str, host: str, collector: str, **more: Any) -> SiteAd:
        now = int(time.time())
        nodes = Nodes("workers", "tcg", "no KVM in a test", total=1, online=1, cpus=4, memory=4 * GIB,
                      max_memory=2 * GIB, max_cpus=2, free=2)
        return SiteAd(name, ("star",), (Element(f"{host}.vmjob.test", f"condor-ce://{collector}"),), (nodes,),
                      created=now, expires=now + 3600, max_walltime=3600, **more)

    def write(self, name: str, host: str, collector: str) -> Path:
        """The same as a document."""
        path = self.cli.cwd / f"{name}.json"
        path.write_text(json.dumps(to_json(self.site_ad(name, host, collector, unlisted=("star",)))))
        return path

    def sources(self, option: str) -> list[str]:
        return [option, f"condor-ce://{self.site.ce}", option, f"condor-ce://{self.site.c2}", "--vo", "star"]

    def send(self, word: str) -> tuple[str, str, str]:
        """Submit to any: where it went, what was said, and the printed next line when all of it ran."""
        done = self("submit", "--to", "any", *self.sources("--sites"), "--image", "micro", "--memory", "256MiB",
                    "--walltime", "5m", "--name", self.name(word), "--", "true")
        assert done.status == 0, done.err
        where = done.out.decode().split(" at ")[1].strip()
        return where, done.err, re.findall(r"next: (.*)", done.err)[0]

    def explained(self) -> list[dict[str, Any]]:
        done = self("sites", *self.sources("--from"), "--image", "micro", "--walltime", "5m", "--json")
        assert done.status == 0, done.err
        found: list[dict[str, Any]] = done.json["sites"]
        return found

    def run(self, line: str) -> None:
        """The commands of a printed line, as they stand there."""
        for command in line.split(" && "):
            program, *words = shlex.split(command)
            assert program == "vmjob"
            done = self(*words)
            assert done.status == 0, done.err


@pytest.fixture(autouse=True)
def nothing_is_remembered(home: Path) -> Iterator[None]:
    memory = home / "store/sites-memory.json"
    memory.unlink(missing_ok=True)
    yield
    memory.unlink(missing_ok=True)


@pytest.fixture
def vmjob(cli: Cli, broken: Site) -> Iterator[Any2]:
    made = Any2(cli, broken)
    made.publish()
    yield made
    broken.mend()
    made.clean()
    Pool(broken, "alice", "c2").act("Remove", made.ours)


def test_the_job_lands_where_it_should(vmjob: Any2) -> None:
    site, (ce, c2) = vmjob.site, (f"condor-ce://{vmjob.site.ce}", f"condor-ce://{vmjob.site.c2}")
    first, said, line = vmjob.send("first")
    assert first == ce and "WITH was chosen" in said and "the image micro is there" in said
    vmjob.run(line)

    site.stop_host("ce")
    second, said, line = vmjob.send("second")
    assert second == c2 and "WITH did not take it" in said and "it travels with the job" in said
    vmjob.run(line)
    result = json.loads(next(vmjob.cli.cwd.glob("*-second-*.out/result.json")).read_text())
    assert (result["host"], result["status"]) == ("c2.vmjob.test", 0)

    site.mend()
    vmjob.publish()
    best, other = vmjob.explained()
    assert best["site"] == "WITHOUT" and other["fits"]
    assert any("failed once" in one["text"] and "PoolUnreachable" in one["text"] for one in other["reasons"])
    assert vmjob.send("third")[0] == c2  # it was down just now
    assert vmjob("sites", *vmjob.sources("--from"), "--forget").status == 0
    assert vmjob.send("fourth")[0] == ce


def test_what_no_site_has_is_told_by_site_and_nothing_is_queued(vmjob: Any2) -> None:
    done = vmjob("submit", "--to", "any", *vmjob.sources("--sites"), "--image", "micro", "--memory", "3GiB", "--name",
                 vmjob.name("big"), "--", "true")
    assert done.status == 205
    assert "WITH: workers: a guest gets 2.0 GiB memory, and 3.0 GiB are asked for" in done.err
    assert "vmjob sites --for" in done.err
    assert vmjob.queue() == []


# Submits, and stands still once the jobs are queued, until somebody has broken the site.
CUT_OFF = """
import sys
from vmjob.batch.condor import Condor
from vmjob.cli.main import main
real = Condor._queue
def queue(self, *words):
    number = real(self, *words)
    print("queued", flush=True)
    sys.stdin.readline()
    return number
Condor._queue = queue
sys.exit(main(sys.argv[1:]))
"""


def test_a_site_that_is_cut_off_while_it_takes_the_job_is_the_last_that_is_tried(cli: Cli, broken: Site) -> None:
    vmjob = Any2(cli, broken)
    files = [f"--sites={vmjob.write(name, host, address)}" for name, host, address in (
        ("A", "ce", broken.ce), ("B", "c2", broken.c2))]
    name = vmjob.name("cut")
    (cli.cwd / "scratch").mkdir()
    with subprocess.Popen([sys.executable, "-c", CUT_OFF, "submit", "--to", "any", *files, "--vo", "star", "--image",
                           "micro", "--memory", "256MiB", "--name", name, "--", "true"], cwd=cli.cwd, text=True,
                          env=vmjob.cli.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as submit:
        assert submit.stdout and submit.stdout.readline() == "queued\n"
        broken.stop_host("ce")
        _, said = submit.communicate("\n", timeout=60)
    assert submit.returncode in (190, 191) and "no other site was tried" in said
    broken.mend()
    assert [one["VmjobName"] for one in vmjob.queue() if not one.get("VmjobHolds")] == [name]
    assert Pool(broken, "alice", "c2").query(f'VmjobName == "{name}"', "ClusterId") == []
    vmjob.clean()


def test_a_site_that_stands_still_is_given_up(broken: Site) -> None:
    def check(patience: str) -> subprocess.CompletedProcess[str]:
        # HTCondor's bindings read their configuration once, and other tests may have had them do so in this process
        return subprocess.run([sys.executable, "-c", CHECK, f"condor-ce://{broken.c2}", patience], text=True,
                              env={**broken.environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)

    done = check("20")
    assert done.returncode == 0, done.stderr
    programs = {process.program for process in broken.processes("c2")}
    for program in programs:
        broken.kill("c2", program, signal.SIGSTOP)
    try:
        done = check("2")
        assert done.returncode and "PoolUnreachable" in done.stderr and "does not answer within 2 s" in done.stderr
    finally:
        for program in programs:
            broken.kill("c2", program, signal.SIGCONT)
