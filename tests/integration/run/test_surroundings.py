"""Odd surroundings: readers that leave, stop or are full, streams that are closed, no home, slots that freeze."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import Cli, qemus, result_of

pytestmark = pytest.mark.integration

VMJOB = f"{sys.executable} -m vmjob"


def shell(cli: Cli, script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    (cli.cwd / "scratch").mkdir(exist_ok=True)
    return subprocess.run(["bash", "-c", script], cwd=cli.cwd, env=cli.environment(), capture_output=True, text=True,
                          timeout=timeout)


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_leaves_does_not_change_the_status(cli: Cli, option: str) -> None:
    done = shell(cli, f"{VMJOB} run --image micro {option} -- sh -c 'echo a; sleep 1; echo b; exit 7' 2>&1 | true; "
                      "echo ${PIPESTATUS[0]}")
    assert done.stdout == "7\n" and "Traceback" not in done.stderr


def test_a_list_that_is_cut_short_is_fine(cli: Cli) -> None:
    assert shell(cli, f"{VMJOB} image list | true; echo ${{PIPESTATUS[0]}}").stdout == "0\n"


def test_a_full_stdout_is_a_failure_and_no_hang(cli: Cli) -> None:
    done = shell(cli, f"{VMJOB} run --image micro -- sh -c 'yes | head -c 20000000' >/dev/full")
    assert done.returncode == 230 and "stdout cannot be written: No space left" in done.stderr


def test_a_stopped_reader_does_not_make_us_deaf(cli: Cli) -> None:
    run = cli.start("run", "--image", "micro", "--output", "part", "--results", "res", "--", "sh", "-c",
                    "echo half > part; yes")
    time.sleep(6)  # nobody reads: the pipe is full, and the program stands still
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=40) == 225
    assert (cli.cwd / "res/part").read_text() == "half\n"
    assert result_of(cli.cwd / "res")["failure"]["kind"] == "Interrupted"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(cli: Cli, closed: str) -> None:
    done = shell(cli, f"{VMJOB} run --image micro --results res -- sh -c 'echo out; echo err >&2; exit 7' {closed}")
    assert done.returncode == 7 and "Traceback" not in done.stderr
    assert result_of(cli.cwd / "res")["exit_status"] == 7


def test_words_that_are_no_text(cli: Cli) -> None:
    done = shell(cli, f"{VMJOB} run --image micro -q -- printf %s $'\\xff\\xfe' | od -An -tx1")
    assert done.stdout.split() == ["ff", "fe"]


def test_without_a_home(cli: Cli, request: pytest.FixtureRequest) -> None:
    """A pool account with no entry in /etc/passwd and no HOME: what is read-only or missing is done without."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become an account that does not exist")
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="vmjob-test-"))  # pytest's own folder is closed to others
    request.addfinalizer(lambda: shutil.rmtree(place))
    place.chmod(0o755)
    payload, work = place / "payload", place / "work"
    assert cli("pack", "--image", "micro", "-o", payload, "--", "sh", "-c", "exit 7").status == 0
    work.mkdir()
    os.chown(work, 54321, 54321)
    done = subprocess.run(["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "env", "-i",
                           "PATH=/usr/bin:/bin", "sh", payload / "vmjob-wrapper.sh"], cwd=work, capture_output=True,
                          text=True, timeout=90)
    assert done.returncode == 7, done.stderr
    shutil.rmtree("/var/tmp/vmjob-54321")


def test_a_frozen_slot_goes_on_when_it_thaws(cli: Cli) -> None:
    before = set(qemus())
    run = cli.start("run", "--image", "micro", "-q", "--", "sh", "-c", "echo up; sleep 5; echo end",
                    env={"VMJOB_SILENCE_TIMEOUT": "5s"})
    assert run.stdout and run.stdout.readline() == b"up\n"
    frozen = [run.pid, *(set(qemus()) - before)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out == b"end\n", err


def test_aliases_in_yaml_are_refused(cli: Cli) -> None:
    (cli.cwd / "bomb.yaml").write_text("image: &a [x, x]\ncommand: [*a, *a]\n")
    (cli.cwd / "deep.yaml").write_text("command: " + "[" * 5000)
    for name, word in (("bomb.yaml", "aliases"), ("deep.yaml", "")):
        done = cli("run", name)
        assert done.status == 200 and word in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("words", [["--memory", "9" * 400 + "GiB"], ["--walltime", "9" * 400], ["--cpus", "x"]])
def test_numbers_without_sense(cli: Cli, words: list[str]) -> None:
    done = cli.micro(*words, "--", "true")
    assert done.status == 200 and "Traceback" not in done.err


def test_a_store_that_cannot_be(cli: Cli) -> None:
    done = cli("image", "micro", env={"VMJOB_HOME": "/proc/nowhere"})
    assert 200 <= done.status < 250 and "Traceback" not in done.err
