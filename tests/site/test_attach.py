"""Into the guest of a job in a real slot, by the real condor_ssh_to_job."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli
from tests.site.pool import Pool
from tests.site.site import Site

pytestmark = [pytest.mark.site, pytest.mark.timeout(240)]

# in a process of its own: what we attach are its standard streams
ATTACH = textwrap.dedent("""
    import sys
    from vmjob.batch.attach import attach, tail
    from vmjob.batch.jobs import JobId, JobInfo, State
    from vmjob.batch.pool import Pool
    from vmjob.batch.targets import Place
    from vmjob.core.errors import VmjobError

    pool = Pool(Place(sys.argv[1], "ce.vmjob.test"))
    job = JobInfo(JobId(int(sys.argv[2]), 0), "a job", State.RUNNING)
    try:
        if sys.argv[3] == "tail":
            sys.stdout.buffer.write(tail(pool, job, "out"))
        else:
            sys.exit(attach(pool, job, sys.argv[3]))
    except VmjobError as error:
        sys.exit(f"{error.kind}: {error.message}; {error.hint}")
""")


def argv(site: Site, job: int, what: str) -> list[str]:
    return [sys.executable, "-c", ATTACH, site.ce, str(job), what]


def environment(site: Site, user: str = "alice") -> dict[str, str]:
    return {**site.environment(user), "PYTHONPATH": str(ROOT), "TERM": "vt220"}


@pytest.fixture(scope="module")
def running(site: Site, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A job whose guest runs: its number."""
    folder = tmp_path_factory.mktemp("attach")
    cli, payload = Cli(folder, home), folder / "payload"
    program = "echo said; echo on the console >/dev/console; sleep 180"
    packed = cli("pack", "--image", "micro", "--user", "root", "-o", payload, "--", "sh", "-c", program)
    assert packed.status == 0, packed.err
    names = ",".join(str(path) for path in payload.iterdir() if path.suffix != ".sh")
    pool = Pool(site)
    job = pool.submit(f"executable = {payload}/vmjob-wrapper.sh\ntransfer_input_files = {names}\n"
                      "should_transfer_files = YES\nrequest_cpus = 1\nrequest_memory = 700\nrequest_disk = 100MB\n"
                      f"output = {folder}/out\nerror = {folder}/err\nqueue\n", spool=True)
    try:
        pool.until(f"ClusterId == {job}", lambda ad: ad["JobStatus"] == 2)
        yield job  # at once: the queue does not know the slot yet, and the guest has not booted
    finally:
        pool.act("Remove", f"ClusterId == {job}")


def look(site: Site, job: int, what: str, text: str = "", user: str = "alice") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(site, job, what), input=text, capture_output=True, text=True, timeout=120,
                          env=environment(site, user))


def test_commands_from_a_pipe(site: Site, running: int) -> None:
    done = look(site, running, "shell", "uname -n; tty; exit 3\n")
    assert (done.returncode, done.stdout) == (3, "vmjob\n/dev/hvc0\n"), done.stderr


def test_a_terminal(site: Site, running: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(argv(site, running, "shell"), stdin=theirs, stdout=theirs, stderr=theirs,
                          env=environment(site), start_new_session=True) as process:
        os.close(theirs)
        said, typed = "", 0
        steps = [("Ctrl-] leaves", "tty; echo $TERM $((6 * 7))\r"), ("vt220 42", "sleep 1000\r"),
                 ("sleep 1000", "\x03echo after=$?\r"), ("after=130", "exit 4\r")]
        deadline = time.monotonic() + 100
        try:
            while time.monotonic() < deadline and (data := os.read(ours, 65536)):
                said += data.decode(errors="replace")
                if typed < len(steps) and steps[typed][0] in said:
                    said = said.partition(steps[typed][0])[2]
                    time.sleep(1)
                    os.write(ours, steps[typed][1].encode())
                    typed += 1
        except OSError:  # the other end is closed
            pass
        finally:
            process.kill() if time.monotonic() > deadline else None
        assert (process.wait(60), typed) == (4, 4), said
    os.close(ours)


def test_console_and_what_was_said(site: Site, running: int) -> None:
    assert look(site, running, "tail").stdout == "said\n"
    with subprocess.Popen(argv(site, running, "console"), stdout=subprocess.PIPE, env=environment(site)) as process:
        assert process.stdout
        seen = b""
        while b"on the console" not in seen and (data := process.stdout.read1()):
            seen += data
        process.terminate()
    assert b"on the console" in seen


def test_what_cannot_be_looked_into(site: Site, running: int) -> None:
    assert look(site, 999999, "shell").stderr.startswith("JobUnknown: ")
    other = look(site, running, "shell", user="bob")
    assert other.returncode == 1 and other.stderr.splitlines()[-1].startswith("PoolRefused: "), other.stderr
