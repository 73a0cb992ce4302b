"""The script that makes a guest a worker node, run with an HTCondor that only says what a test wants it to say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.integration

VERSION = 'echo "\\$CondorVersion: {version} 2026-07-12 \\$"'
PING = 'echo "Session ID:   vo:6:$(($(date +%s) {ahead})):18"'  # the pool's clock, by seconds ahead
SAY_PING = 'cat <<"E"\n{text}\nE\nexit 1'
# as the real one's logs, which the script reads
LOG = "/run/vmjob/glidein/log"
WORK = "/var/lib/vmjob/work"
MASTER = f"""\
echo '11/20/26 13:24:39 slot1_1: Remote owner is ada@vo.test' >>{LOG}/StartLog
echo '11/20/26 13:24:39 slot1_1: Remote job ID is 7.0' >>{LOG}/StartLog
{{ for word in "ClusterId = 7" "ExitCode = 3" "JobDuration = 2.75" "ProcId = 0" \
  'ToE = [ How = "OF_ITS_OWN_ACCORD"; HowCode = 0; ExitCode = 3 ]' '*** Offset = 0' \
  "ClusterId = 8" "ExitSignal = 15" "JobDuration = 9.1" "ProcId = 1" '*** Offset = 1'; do echo "$word"; done
}} >>{WORK}/glidein/startd_history
sleep 1.5
echo 'No resources have been claimed for 30 seconds' >>{LOG}/StartLog"""
CRASHING = f"""\
for n in 1 2 3; do
  echo 'restarting /usr/sbin/condor_startd in 3 seconds' >>{LOG}/MasterLog
done
echo '11/20/26 ERROR "Invalid result for X" at line 1' >>{LOG}/StartLog
exec sleep 60"""


class Guest:
    """A machine to the script, made of name spaces: its own /run, /var/lib, /etc/hosts and users."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "job/jobfeatures", "work", "etc"):
            (folder / name).mkdir(parents=True)
        for name, line in (("hosts", "127.0.0.1 localhost"), ("passwd", "root:x:0:0::/:/bin/sh"), ("group", "")):
            (folder / "etc" / name).write_text(f"{line}\n")
        (folder / "job/condor_config").write_text("# ours\n")
        (folder / "job/token").write_text("a.b.c\n")
        (folder / "job/jobfeatures/jobstart_secs").write_text(f"{int(time.time())}\n")
        self.tool("condor_version", VERSION.format(version="23.9.6"))
        self.tool("condor_ping", PING.format(ahead="+ 0"))
        self.tool("condor_master", MASTER)

    def tool(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, shell: str = "sh", tools: str = "/usr/local/sbin", **variables: str) -> subprocess.Popen[str]:
        binds = [word for name, place in (("job", "/run/vmjob/job"), ("work", "/var/lib/vmjob/work"), ("bin", tools))
                 for word in ("--bind", str(self.folder / name), place)]
        for name in ("hosts", "passwd", "group"):
            binds += ["--bind", str(self.folder / "etc" / name), f"/etc/{name}"]
        words = {"POOL": "10.0.0.1:9618", "NAME": "vmjob-1", "DISK": "100", "REACH": "1", "GRACE": "0", **variables}
        for name, value in words.items():
            binds += ["--setenv", f"VMJOB_GLIDEIN_{name}", value]
        return subprocess.Popen(
            ["bwrap", "--ro-bind", "/", "/", "--tmpfs", "/run", "--tmpfs", "/var/lib", "--tmpfs", "/usr/local",
             "--dev", "/dev", "--proc", "/proc", *binds, "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-uts",
             "--unshare-pid", "--die-with-parent", *shell.split(), str(ROOT / "vmjob/guest/glidein.sh")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, **more: str) -> tuple[int, str]:
        """Its status and what it said; nothing of the token is left."""
        return self.end(self.start(**more))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        said = process.communicate(timeout=30)[0]
        assert not (self.folder / "job/token").exists() and "a.b.c" not in said
        return process.returncode, said

    @property
    def why(self) -> str:
        return (self.folder / "work/glidein/why").read_text()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    if subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--uid", "0", "true"],
                      capture_output=True).returncode if shutil.which("bwrap") else True:
        pytest.skip("needs bubblewrap and user namespaces: apt-get install bubblewrap")
    yield Guest(tmp_path)


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_it_serves_and_tells_of_jobs(guest: Guest, shell: str) -> None:
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"needs {shell}: apt-get install dash bash busybox-static")
    status, said = guest.run(shell=shell)
    assert status == 0, said
    assert [line.removeprefix("glidein: ") for line in said.splitlines()] == [
        "joined the pool 10.0.0.1:9618 as vmjob-1", "job 7.0 of ada@vo.test begins", "job 7.0 ended (3) after 2 s",
        "job 8.1 was stopped after 9 s", "leaves the pool: no more work"]
    folder = guest.folder / "work/glidein"
    began, ended = map(int, (folder / "times").read_text().split())
    assert began <= ended and (folder / "StartLog").exists() and not (folder / "refused").exists()


@pytest.mark.parametrize("tool, script, status, why", [
    ("condor_master", "", 11, "there is no HTCondor in this image"),
    ("condor_version", VERSION.format(version="8.8.17"), 12, "HTCondor 8.8.17 is too old: tokens need 9.0"),
    ("condor_version", "echo 'libcondor.so: not found' >&2; exit 127", 16, "does not run in this guest: libcondor.so"),
    ("condor_ping", PING.format(ahead="+ 7200"), 13, "s behind the pool's"),
    ("condor_ping", PING.format(ahead="- 7200"), 13, "s ahead of the pool's"),
    ("condor_ping", SAY_PING.format(text="ERROR: failed to make connection"), 14, "within 1 s: failed to make conn"),
    ("condor_ping", "sleep 60", 14, "10.0.0.1:9618 was not reached within 1 s: no answer"),
    ("condor_ping", SAY_PING.format(text="from trust domain A (server trust domain is B)."), 15, "of another pool: "),
    ("condor_ping", SAY_PING.format(text="ERROR: decode JWT"), 15, "holds no token"),
    ("condor_ping", SAY_PING.format(text="Hash supplied by server"), 15, "forged"),
    ("condor_ping", SAY_PING.format(text="Authentication was a Success.\nERROR"), 15, "does not allow ADVERTISE"),
    ("condor_ping", SAY_PING.format(text="ERROR (IDTOKENS) failed"), 15, "the pool refuses the token"),
    ("condor_master", "echo 'bad thing' >>/run/vmjob/glidein/log/MasterLog; exit 4", 16, "status 4: bad thing"),
    ("condor_master", CRASHING, 16, 'again and again: "Invalid result for X"'),
])
def test_failures(guest: Guest, tool: str, script: str, status: int, why: str) -> None:
    guest.tool(tool, script)
    if not script:
        (guest.folder / "bin" / tool).unlink()
    found, said = guest.run()
    assert found == status and why in guest.why and guest.why.strip() in said, said


def test_an_expired_token(guest: Guest) -> None:
    guest.tool("condor_ping", SAY_PING.format(text="ERROR (IDTOKENS) failed"))
    assert guest.run(EXPIRES=str(int(time.time()) - 5))[0] == 15 and guest.why == "the token has expired\n"


@pytest.mark.parametrize("versions", ["9.0.17", "10.0.0", "25.14.1"])
def test_versions_that_are_new_enough(guest: Guest, versions: str) -> None:
    guest.tool("condor_version", VERSION.format(version=versions))
    assert guest.run()[0] == 0


def test_a_guest_whose_clock_cannot_be_set(guest: Guest) -> None:
    (guest.folder / "job/jobfeatures/jobstart_secs").write_text(f"{int(time.time()) + 4000}\n")
    assert guest.run()[0] == 13 and "the guest's clock is wrong" in guest.why


def test_a_pool_by_name(guest: Guest) -> None:
    with (guest.folder / "etc/hosts").open("a") as hosts:
        hosts.write("10.0.0.7 vo.example.test\n")
    guest.tool("condor_master", f"cp /run/vmjob/glidein/condor_config {WORK}/; " + MASTER)
    status, said = guest.run(POOL="vo.example.test:9618")
    assert status == 0 and "joined the pool vo.example.test:9618" in said
    config = (guest.folder / "work/condor_config").read_text()
    assert config.startswith("# ours\n") and "COLLECTOR_HOST = 10.0.0.7:9618\n" in config


def test_a_pool_whose_name_nobody_knows(guest: Guest) -> None:
    assert guest.run(POOL="vo.nowhere.test:9618")[0] == 14 and "no address of vo.nowhere.test" in guest.why


@pytest.mark.parametrize("name, content, why", [
    ("condor.tar.gz", None, "tar cannot unpack it"), ("condor.tar", "other", "has no sbin/condor_master"),
    ("condor.tar", "condor", "")])
def test_a_tarball(guest: Guest, name: str, content: Optional[str], why: str) -> None:
    target = guest.folder / "work" / name
    if content is None:
        target.write_text("no archive")
    else:
        with tarfile.open(target, "w") as archive:
            for folder, tool in (("sbin", "condor_master"), ("bin", "condor_version"), ("bin", "condor_ping")):
                inside = tool if content == "condor" else "x"
                archive.add(guest.folder / "bin" / tool, f"condor-25.0/{folder}/{inside}")
    status, said = guest.run(CONDOR=name, tools="/usr/local/lib")
    assert (status, target.exists()) == ((11, True) if why else (0, False)) and (not why or why in guest.why), said


@pytest.mark.parametrize("during", ["condor_ping", "condor_master"])
def test_told_to_end(guest: Guest, during: str) -> None:
    guest.tool(during, f"trap 'exit 0' TERM; touch {WORK}/there; sleep 60 & wait")
    process = guest.start(REACH="30")
    while not (guest.folder / "work/there").exists():
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    inner = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split() or children
    os.kill(int(inner[0]), signal.SIGTERM)
    status, said = guest.end(process)
    assert status == 0 and not (guest.folder / "work/glidein/why").exists(), said
