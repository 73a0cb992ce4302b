"""A job in ARC's run-time environment of an image: ARC's own scripts, vmjob, and the micro image."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cemon_publisher.example import EXAMPLE
from cemon_publisher.render import arc_rte

from tests import arc, images
from tests.conftest import ROOT, Cli, result_of
from tests.unit.publisher.test_classads import HOSTILE
from vmjob.ads.site_ad import SiteImage

pytestmark = pytest.mark.integration

SCRIPT = """\
#!/bin/sh
echo "$# words:"; printf '<%s>' "$@"; echo
echo "$GREETING"; cat; cat "in put'.txt"; nproc
echo made > 'out [1].dat'; mkdir d; echo deep > d/x; echo unasked > e
exit 3
"""


class Job:
    """One job of one image; ``rte`` is what its run-time environment is called."""

    def __init__(self, cli: Cli, **changed: Any) -> None:
        images.need({"qemu-system-x86_64": "qemu-system-x86"})
        place = arc.location()
        if place is None:
            pytest.skip("needs ARC's scripts: .ci/setup test, or apt-get install nordugrid-arc-arex")
        digest = (cli.home / "store/names/micro").read_text().strip()
        image = replace(SiteImage("micro $(id)", digest, ("star",), version="1'"), **changed)
        [(self.rte, text)] = arc_rte.files(replace(EXAMPLE, images=(image,))).items()
        self.arex, self.image = arc.Arex(place, cli.cwd / "arex"), image
        node = arc.command(cli.cwd / "vmjob", {"PYTHONPATH": str(ROOT)})
        self.arex.enable(self.rte, text, VMJOB_COMMAND=str(node), VMJOB_HOME=str(cli.home / "store"),
                         VMJOB_NODE_CACHE=str(cli.home / "cache"))
        self.program = self.arex.session / "run.sh"
        self.program.write_text(SCRIPT)
        self.program.chmod(0o755)

    def __call__(self, vo: str = "star", **options: str) -> subprocess.CompletedProcess[str]:
        return self.arex.submit({"arg_0": "./run.sh", "runtime_0": self.rte, **options}, vo)


def test_the_job_runs_in_the_image(cli: Cli) -> None:
    job = Job(cli)
    session = job.arex.session
    (session / "in put'.txt").write_text("brought\n")
    (session / "stdin.txt").write_text("read\n")
    done = job(arg_1="a  b", arg_2="""q'"x\\""", env_0="GREETING=he llo'$x`id`", env_1="GRID_GLOBAL_JOBID=https://ce/1",
               stdin=f"{session}/stdin.txt", memory="1000", disk="100", walltime="300", outputfile_0="/stdout",
               outputfile_1="/stderr", outputfile_2="/out [1].dat", outputfile_3="/d/")
    assert done.returncode == 0, done.stderr
    assert f"the job runs in {job.image.name} ({job.image.digest})" in done.stderr
    assert job.arex.status() == 3, (session / "stderr").read_text()
    assert (session / "stdout").read_text() == \
        """2 words:\n<a  b><q'"x\\>\nhe llo'$x`id`\nread\nbrought\n1\n"""
    assert (session / "out [1].dat").read_text() == "made\n"
    assert (session / "d/x").read_text() == "deep\n"
    assert not (session / "e").exists()
    result = result_of(session)
    assert result["image_digest"] == job.image.digest
    assert (result["cpus"], result["memory"]) == (1, (1000 - 416) * 256 // 257 * 2**20)
    assert not (session / ".cache").exists()
    assert f"wninstance={job.image.digest}" in session.with_name(f"{arc.ID}.diag").read_text()


def test_all_of_the_work_folder_comes_back_for_one_who_asks_so(cli: Cli) -> None:
    job = Job(cli, vos=("*",))
    job.program.write_text("#!/bin/sh\necho one > x; echo two > .y\n")
    assert job("", outputfile_0="/").returncode == 0
    assert job.arex.status() == 0
    assert (job.arex.session / "x").read_text() == "one\n"
    assert (job.arex.session / ".y").read_text() == "two\n"


@pytest.mark.parametrize(("changed", "options", "why"), [
    ({}, {"vo": "atlas"}, "micro $(id) is for jobs of star"),
    ({"expires": 1000}, {}, "has expired"),
    ({"memory": 2**30}, {"memory": "1000"}, "needs 1024 MiB"),
    ({}, {"numnodes": "2", "count": "4"}, "2 nodes"),
    ({}, {"stdin": "/etc/passwd"}, "stdin is /etc/passwd"),
    ({}, {"runtime_1": "SECOND"}, "two images"),
])
def test_what_cannot_be_is_refused_before_it_is_queued(cli: Cli, changed: dict[str, Any], options: dict[str, str],
                                                       why: str) -> None:
    job = Job(cli, **changed)
    job.arex.enable("SECOND", (job.arex.control / "rte/enabled" / job.rte).read_text())
    done = job(**options)
    assert done.returncode != 0
    assert why in done.stderr


def test_a_node_without_vmjob_fails_the_job(cli: Cli) -> None:
    job = Job(cli)
    (cli.cwd / "vmjob").unlink()
    job.arex.wait = 0  # A-REX would ask whether its processes are there
    assert job().returncode == 0
    comment, deadline = job.arex.session.with_name(f"{arc.ID}.comment"), time.monotonic() + 30
    while "is not on this node" not in comment.read_text():
        assert time.monotonic() < deadline, comment.read_text()
        time.sleep(0.1)


def test_scripts_are_clean_whatever_an_image_is_called(tmp_path: Path) -> None:
    tool = shutil.which("shellcheck")
    if not tool:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    for number, text in enumerate([*arc_rte.files(HOSTILE).values(), *arc_rte.files(EXAMPLE).values()]):
        script = tmp_path / f"{number}.sh"
        script.write_text(text)
        done = subprocess.run([tool, "-s", "sh", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
