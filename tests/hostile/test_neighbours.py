"""Three users on one node: a victim who runs a job, a neighbour who means harm, and root's own services.

Real users, folders and processes. As root; an ordinary user has them in a user namespace of her subordinate ids, in
which the last test runs this file again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import ROOT, Cli, result_of
from tests.hostile import neighbour
from vmjob import process, runs, spool
from vmjob.accounting import sweep_all
from vmjob.slot import scratch

pytestmark = pytest.mark.integration

NEIGHBOUR, VICTIM = 52001, 52002
SECRET = "a-secret-of-the-victims"
HEX = "ab" * 32
PYTHON = "/usr/bin/python3"
needs_users = pytest.mark.skipif(os.getuid() != 0, reason="plays other users: runs as root, or in the last test")


def become(uid: int, *words: object) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *map(str, words)]


@dataclass
class Node:
    """``place`` is the machine: runs, cache, scratch (all 1777), spool; homes of both; what is root's own."""

    place: Path

    def __getattr__(self, name: str) -> Path:
        return self.place / name

    @property
    def shared(self) -> list[Path]:
        return [self.place / name for name in ("runs", "cache", "scratch", "spool")]

    def env(self) -> list[str]:
        return ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"HOME={self.place}/victim",
                f"TMPDIR={self.place}/scratch", f"VMJOB_RUNS={self.place}/runs", f"VMJOB_NODE_CACHE={self.place}/cache",
                f"VMJOB_SITE_CONFIG={self.place}/site.yaml", f"BEARER_TOKEN={SECRET}", f"VMJOB_PYTHON={PYTHON}"]

    def run(self) -> subprocess.Popen[str]:
        """The victim's job, with the worst umask there is."""
        job = f"umask 0; exec sh {self.place}/payload/vmjob-wrapper.sh --scratch {self.place}/scratch"
        return subprocess.Popen(
            become(VICTIM, *self.env(), "sh", "-c", job),
            cwd=self.place / "victim/work", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True)

    def records(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in sorted((self.place / "spool/outgoing").iterdir())
                if path.lstat().st_uid == VICTIM]


@pytest.fixture
def node(cli: Cli) -> Iterator[Node]:
    if not Path(PYTHON).exists() or not shutil.which("setpriv"):
        pytest.skip("needs /usr/bin/python3 and setpriv, for other users")
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="vmjob-test-"))
    try:
        place.chmod(0o755)
        for name in ("runs", "cache", "scratch"):
            (place / name).mkdir()
            (place / name).chmod(0o1777)
        for name in spool.FOLDERS:
            (place / "spool" / name).mkdir(parents=True)
            (place / "spool" / name).chmod(0o3777)
        (place / "site.yaml").write_text(f"name: EXAMPLE\naccounting:\n  format: json\n  spool: {place}/spool\n")
        (place / "roots").write_text("root's own\n")
        (place / "roots").chmod(0o600)
        for name, uid in (("victim", VICTIM), ("neighbour", NEIGHBOUR)):
            (place / name / "work").mkdir(parents=True)
            for folder in (place / name, place / name / "work"):
                os.chown(folder, uid, uid)
                folder.chmod(0o755)
        packed = cli("pack", "--image", "micro", "--accel", "tcg", "--network", "none", "--memory", "256MiB",
                     "--output", "x", "-o", place / "payload", "--", "sh", "-c",
                     "echo precious >x; echo up; sleep 3; exit 7")
        assert packed.status == 0, packed.err
        for path in (place / "payload", *(place / "payload").rglob("*")):
            path.chmod(path.stat().st_mode | 0o044 | (0o011 if path.is_dir() else 0))
        yield Node(place)
    finally:
        for uid in (VICTIM, NEIGHBOUR):
            for pid in neighbour.processes(uid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def as_user(uid: int, script: str, *words: object) -> None:
    done = subprocess.run(become(uid, PYTHON, "-c", script, *words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def harassed(node: Node) -> Iterator[Path]:
    """The neighbour at work on all that the victim has."""
    report = node.place / "neighbour/report"
    script = node.place / "neighbour/neighbour.py"
    shutil.copy(neighbour.__file__, script)
    child = subprocess.Popen(become(NEIGHBOUR, PYTHON, script, VICTIM, report, *node.shared, node.place / "victim"),
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not report.exists():
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        yield report
        assert child.poll() is None, child.communicate()
    finally:
        child.kill()
        child.communicate()


PLANT = f"""
import os, sys
from pathlib import Path
os.umask(0)
place = Path(sys.argv[1])
def pipe(path): path.parent.mkdir(exist_ok=True, parents=True); os.mkfifo(path, 0o666)
digests = sys.argv[2:]
for digest in digests: pipe(place / "runs" / f"image-{VICTIM}-{{digest}}")
pipe(place / "runs" / "run-{VICTIM}-0123456789abcdef")
(place / "runs" / "run-{VICTIM}-00000000deadbeef").symlink_to(place / "roots")
(place / "cache" / "uid-{VICTIM}").mkdir(0o777)
(place / "cache" / "uid-{VICTIM}" / "blobs").symlink_to(place / "neighbour")
pipe(place / "scratch" / "vmjob-run-planted" / ".lock")
pipe(place / "scratch" / ".vmjob-new-planted" / ".lock")
(place / "scratch" / "vmjob-run-link").symlink_to(place)
(place / "scratch" / "vmjob-stage-link").symlink_to(place / "victim")
for folder in ("open", "outgoing", "ledger"):
    pipe(place / "spool" / folder / "00000000-0000-4000-8000-000000000001")
    (place / "spool" / folder / "00000000-0000-4000-8000-000000000002").symlink_to(place / "roots")
pipe(place / "spool" / "open" / "00000000-0000-4000-8000-000000000003" / "state")
(place / "spool" / "open" / "00000000-0000-4000-8000-000000000004").symlink_to(place)
pipe(place / "spool" / "ledger" / "00000000-0000-4000-8000-000000000005.json")
"""


@needs_users
def test_a_run_among_neighbours_is_as_any_other(node: Node) -> None:
    """Everything that a neighbour can put in its way, before it and all the while; and root's services beside it, which
    see what is there and are led nowhere. The victim's umask is 0."""
    payload = json.loads((node.place / "payload/payload.json").read_text())
    as_user(NEIGHBOUR, PLANT, node.place, payload["image"]["digest"].partition(":")[2], HEX)
    before = (node.place / "roots").stat()
    running, counted = node.run(), 0
    try:
        with harassed(node) as report:
            while running.poll() is None:  # root's hook, and its sweep
                counted = max(counted, runs.survey(node.place / "runs", time.time()).running)
                assert not sweep_all(node.place / "spool").delivered  # it has its own
                assert scratch.sweep(node.place / "scratch") == []
                time.sleep(0.05)
            out, err = running.communicate()
            said = report.read_text().split("\n")
    finally:
        running.kill()
    work = node.place / "victim/work"
    assert running.returncode == 7 and out == "up\n", err
    result = result_of(work)
    assert result["outcome"] == "program-failed" and (work / "x").read_text() == "precious\n"
    # he was there, and saw what every user may: that it runs, with which words
    assert counted == 1 and any(line.startswith("saw qemu-system") for line in said), said
    assert not [line for line in said if SECRET in line]
    did = {line for line in said if line.startswith("DID")}
    # a run's file in the folder of runs, and the victim's results, are for all to read
    assert did <= {"DID read in runs: run-#-#", "DID read in victim: work", *(f"DID read in work: {name}" for name in (
        "x", "result.json", ".vmjob-result-#", "console.log", ".vmjob-console-#"))}, did
    for path in (work, *work.rglob("*")):
        assert not path.lstat().st_mode & 0o002, path
    assert [(one["uid"], one["outcome"], one["status"]) for one in node.records()] == [(VICTIM, "program-failed", 7)]
    after = (node.place / "roots").stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_uid, after.st_nlink) == (
        before.st_mtime_ns, before.st_mode, 0, before.st_nlink)
    assert [path.name for path in (node.place / "scratch").iterdir() if path.lstat().st_uid == VICTIM] == []
    assert [path.name for path in (node.place / "runs").iterdir() if path.lstat().st_uid == VICTIM] == []
    assert not (node.place / "victim/.ssh").exists()


@needs_users
def test_what_a_killed_run_left_is_nobody_elses(node: Node) -> None:
    """Killed with -9 under the neighbour's eyes: root's sweep makes its one record, her next run cleans up; what he
    made under such names says nothing of her."""
    with harassed(node) as report:
        first = node.run()
        assert first.stdout and first.stdout.readline() == "up\n", first.communicate()
        (folder,) = (node.place / "scratch").iterdir()
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        while _alive(VICTIM) or runs.survey(node.place / "runs", time.time()).running:
            time.sleep(0.02)
        forged = str(uuid4())
        page = {"uuid": forged, "uid": VICTIM, "site": "EXAMPLE", "machine": "m", "user": "u", "group": "g",
                "started": 1.0, "outcome": "ok"}
        as_user(NEIGHBOUR, "import sys; from pathlib import Path; Path(sys.argv[1]).write_text(sys.argv[2])",
                node.place / f"spool/ledger/{forged}.json", json.dumps(page))
        delivered = sweep_all(node.place / "spool").delivered
        assert len(delivered) == 1 and scratch.sweep(node.place / "scratch") == []
        assert folder.exists()  # root removes no user's folder; she does
        second = node.run()
        _, err = second.communicate(timeout=240)
        assert second.returncode == 7, err
        said = report.read_text().split("\n")
    assert not folder.exists()
    assert sorted(str(one["outcome"]) for one in node.records()) == ["killed", "program-failed"]
    report_of = process.run([sys.executable, "-m", "vmjob", "account", "report", "--spool", str(node.place / "spool"),
                             "--by", "user", "--json"], cwd=ROOT, check=False)
    tables = json.loads(report_of.stdout)["tables"]
    assert sum(row["runs"] for table in tables for row in table["rows"]) == 2, tables  # the forged page is none
    assert not [line for line in said if line.startswith(("DID send", "DID write", "DID remove", "DID trace"))]


def _alive(uid: int) -> list[int]:
    found = []
    for pid in neighbour.processes(uid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


@needs_users
@pytest.mark.parametrize("kind", ["pipe", "link", "file", "second name"])
def test_a_proxy_in_tmp_is_the_users_own(node: Node, kind: str) -> None:
    """Its name is known to all: what a neighbour put there is none of hers, and holds nobody."""
    name = Path(f"/tmp/x509up_u{VICTIM}")
    if name.exists() or name.is_symlink():
        pytest.skip(f"{name} is somebody's")
    made = {"pipe": "os.mkfifo(sys.argv[1], 0o666)", "link": "os.symlink('/etc/passwd', sys.argv[1])",
            "file": "open(sys.argv[1], 'w').write('-----BEGIN CERTIFICATE-----')"}
    hers = node.place / "scratch/hers"
    try:
        if kind == "second name":  # of a file of hers: a kernel may let him (fs.protected_hardlinks)
            as_user(VICTIM, "import sys; open(sys.argv[1], 'w')", hers)
            os.link(hers, name)
        else:
            as_user(NEIGHBOUR, f"import os, sys; os.umask(0); {made[kind]}", name)
        look = (f"import os, sys; sys.path.insert(0, {str(node.place / 'payload/vmjob.pyz')!r})\n"
                "from vmjob.stage import credentials\nprint('proxy', credentials.user_proxy(os.environ))")
        done = subprocess.run(become(VICTIM, *node.env(), PYTHON, "-c", look), capture_output=True, text=True,
                              timeout=60)
        assert done.stdout == "proxy None\n", done.stdout + done.stderr
    finally:
        name.unlink(missing_ok=True)


def test_an_ordinary_user_plays_them_in_a_namespace() -> None:
    if os.getuid() == 0:
        pytest.skip("root plays them itself")
    apart = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs subordinate ids and user namespaces: apt-get install uidmap, and a line in /etc/subuid")
    done = subprocess.run([*apart, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
