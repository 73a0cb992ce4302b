"""The outcome that is told is the outcome that was: the first cause, in result.json as in the exit status, whatever the
node and the batch system do to a run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, qemus, result_of
from tests.integration.test_failures import variant, wait_for

pytestmark = pytest.mark.integration

UP = ("sh", "-c", "echo up; sleep 100")


def started(cli: Cli, *args: Any, program: tuple[str, ...] = UP, **more: Any) -> subprocess.Popen[bytes]:
    """A run whose program says up."""
    run = cli.start("run", "--image", "micro", "--results", "res", "-q", *args, "--", *program, **more)
    assert run.stdout and run.stdout.readline() == b"up\n"
    return run


def ended(cli: Cli, run: subprocess.Popen[bytes], status: int, kind: str) -> dict[str, Any]:
    """The result of a run that ends with this failure; no traceback, and nothing left."""
    _, err = run.communicate(timeout=120)
    said = err.decode(errors="replace")
    assert "Traceback" not in said and "bug in vmjob" not in said, said
    result = result_of(cli.cwd / "res")
    failure = result["failure"] or {"kind": ""}
    assert (run.returncode, result["status"], failure["kind"]) == (status, status, kind), said
    assert cli.left_over() == []
    return result


def helper_of(run: subprocess.Popen[bytes], name: str) -> int:
    """The child of this name."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    found = [int(pid) for pid in children if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[0]]
    assert len(found) == 1, found
    return found[0]


# ---------------------------------------------------------------- the first cause


def test_sigterm_before_the_output_was_written(cli: Cli) -> None:
    """Attack cut_short. The program dies of the notice, and its output is missing: neither is the cause."""
    run = started(cli, "--output", "never")
    run.send_signal(signal.SIGTERM)
    result = ended(cli, run, 225, "Interrupted")
    assert result["outcome"] == "failed" and result["failure"]["transient"]
    assert any("never" in note for note in result["notes"])


def test_walltime_before_the_output_was_written(cli: Cli) -> None:
    run = started(cli, "--output", "never", "--walltime", "25s")
    result = ended(cli, run, 224, "WalltimeOver")
    assert any("never" in note for note in result["notes"])


def test_who_ends_us_ends_qemu_too(cli: Cli) -> None:
    """A batch system that signals every process of the job."""
    run = started(cli)
    for pid in (helper_of(run, "qemu"), run.pid):
        os.kill(pid, signal.SIGTERM)
    ended(cli, run, 225, "Interrupted")


def test_qemu_ended_by_a_stranger_is_no_failure_of_the_guests(cli: Cli) -> None:
    run = started(cli)
    os.kill(helper_of(run, "qemu"), signal.SIGTERM)
    result = ended(cli, run, 234, "QemuFailed")
    assert result["failure"]["transient"]


# ---------------------------------------------------------------- a run's own result, from its first moment


def test_killed_runs_leave_no_success_of_an_earlier_one(cli: Cli) -> None:
    """Attack earlier_result."""
    done = cli.micro("--results", "res", "--output", "*.txt", "-q", "--", "sh", "-c", "echo 1 >a.txt; echo 1 >b.txt")
    assert done.status == 0
    (cli.cwd / "res/c.txt").write_text("mine")
    run = started(cli, "--output", "a.*")
    result = result_of(cli.cwd / "res")
    assert (result["outcome"], result["failure"]["kind"], result["failure"]["transient"]) == ("begun", "Killed", True)
    run.kill()
    run.communicate()
    assert result_of(cli.cwd / "res") == result
    # what it would have brought is gone, what others brought is not
    assert sorted(path.name for path in (cli.cwd / "res").glob("*.txt")) == ["b.txt", "c.txt"]


def test_a_list_of_outputs_leads_nobody_out_of_its_folder(cli: Cli) -> None:
    folder, precious = cli.cwd / "res", cli.cwd / "precious.txt"
    folder.mkdir()
    precious.write_text("mine")
    (folder / "link").symlink_to(cli.cwd)
    names = ["../precious.txt", str(precious), "link/precious.txt", "", "a\0b", ".", 7, "d/" * 500]
    (folder / "result.json").write_text(json.dumps({"vmjob": "", "schema": 1, "outputs": names}))
    done = cli.micro("--results", "res", "--output", "*", "-q", "--", "sh", "-c", "echo 1 >x")
    assert done.status == 0 and precious.read_text() == "mine"


def test_a_run_that_is_refused_is_no_earlier_success(cli: Cli) -> None:
    assert cli.micro("--results", "res", "-q", "--", "true").status == 0
    done = cli("run", "--image", "nothing-of-this-name", "--results", "res", "--", "true")
    assert (done.status, result_of(cli.cwd / "res")["failure"]["kind"]) == (211, "ImageMissing")


def test_a_result_has_room_on_a_full_disk(cli: Cli) -> None:
    """The folder is full when the run ends: its last words take the place of its first."""
    script = ("mount -t tmpfs -o size=2m tmpfs res && exec " + sys.executable
              + " -m vmjob run --image micro --results res -q -- sh -c 'echo up; sleep 4; exit 3'")
    (cli.cwd / "res").mkdir()
    (cli.cwd / "scratch").mkdir()
    run = subprocess.Popen(["unshare", *([] if os.getuid() == 0 else ["-r"]), "-m", "sh", "-c", script], cwd=cli.cwd,
                           env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout
    if run.stdout.readline() != b"up\n":
        pytest.skip("this machine does not let us mount: needs root or user namespaces")
    inside = Path(f"/proc/{run.pid}/root{cli.cwd}/res")
    with pytest.raises(OSError, match="space"), (inside / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    place = os.open(inside, os.O_RDONLY)
    run.communicate(timeout=60)
    text = os.pread(os.open("result.json", os.O_RDONLY, dir_fd=place), 2**20, 0)
    assert (run.returncode, json.loads(text)["status"], json.loads(text)["outcome"]) == (3, 3, "program-failed")


# ---------------------------------------------------------------- nothing changes it


@pytest.mark.parametrize("where", ["stdout", "stderr", "closed"])
def test_streams_that_cannot_be_written(cli: Cli, where: str) -> None:
    (cli.cwd / "scratch").mkdir()
    redirect = {"stdout": ">/dev/full", "stderr": "2>/dev/full", "closed": ">&- 2>&-"}[where]
    script = f"exec {sys.executable} -m vmjob run --image micro --results res {'--json' * (where == 'stdout')} -- " \
             f"true {redirect}"
    status = subprocess.run(["sh", "-c", script], cwd=cli.cwd, env=cli.environment(), timeout=100).returncode
    assert (status, result_of(cli.cwd / "res")["outcome"]) == (0, "ok")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTSTP])
def test_signals_at_the_end_change_nothing(cli: Cli, number: int) -> None:
    """Attack two_outcomes. From the moment on that the result is there until the process is gone."""
    run = started(cli, program=("sh", "-c", "echo up; exit 3"))
    while result_of(cli.cwd / "res")["outcome"] == "begun":
        time.sleep(0.001)
    while run.poll() is None:
        run.send_signal(number)
    assert run.returncode == 3
    ended(cli, run, 3, "")


# ---------------------------------------------------------------- signals are heard, each in its own time


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_anything_was_imported(cli: Cli, name: str) -> None:
    """It waits until somebody can make a result of it. The import of argparse is one of the first."""
    (cli.cwd / "argparse.py").write_text(
        f"import os, signal, sys\nos.kill(os.getpid(), signal.SIGUSR1)\nos.kill(os.getpid(), signal.{name})\n"
        "sys.path.pop(0)\ndel sys.modules['argparse']\nimport argparse\nsys.modules[__name__] = argparse\n")
    path = f"{cli.cwd}:{cli.environment()['PYTHONPATH']}"
    run = cli.start("run", "--image", "micro", "--results", "res", "--", "true", env={"PYTHONPATH": path})
    _, err = run.communicate(timeout=60)
    assert run.returncode == 225 and b"Traceback" not in err and f"stopped by {name}".encode() in err


@pytest.mark.parametrize("numbers", ["TSTP TSTP CONT", "TSTP CONT TSTP CONT", "USR1 USR1 USR2", "USR2 CONT"])
def test_pauses_end(cli: Cli, numbers: str) -> None:
    run = started(cli, program=("sh", "-c", "echo up; sleep 1; exit 3"))
    for name in numbers.split():
        run.send_signal(signal.Signals[f"SIG{name}"])
    # whoever stops in the midst of the row is let go by the last of it
    deadline = time.monotonic() + 20
    while run.poll() is None and time.monotonic() < deadline:
        state = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            run.send_signal(signal.SIGCONT)
        time.sleep(0.5)
    ended(cli, run, 3, "")


SWALLOW = """
import os, signal, sys
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
from vmjob import process
from vmjob.errors import Interrupted
from vmjob.interrupt import PATIENCE, Signals
try:
    with Signals(float(sys.argv[1])):
        process.run(["sleep", "20"])
except Interrupted:
    sys.exit(5)
"""


@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_a_signal_in_the_midst_of_a_fork_is_not_lost(patience: float) -> None:
    """Attack lost_signal."""
    done = subprocess.run([sys.executable, "-c", SWALLOW, str(patience)], capture_output=True, timeout=15)
    assert done.returncode == 5, done.stderr


HALF_MADE = """
import os, signal, sys
from pathlib import Path
from vmjob.interrupt import PATIENCE, Signals
from vmjob.slot.scratch import scratch
event = sys.argv[2]
def hook(name, args):
    if name == event:
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
with Signals(float(sys.argv[1])) as signals:
    with scratch(Path(".")):
        pass
"""


@pytest.mark.parametrize("patience", [0.0, 2.0])
@pytest.mark.parametrize("event", ["tempfile.mkdtemp", "fcntl.flock", "os.rename", "os.rmdir", "os.scandir"])
def test_a_signal_in_the_making_of_the_scratch_folder(tmp_path: Path, event: str, patience: float) -> None:
    subprocess.run([sys.executable, "-c", HALF_MADE, str(patience), event], capture_output=True, timeout=15,
                   cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_slow_command_reads_comes_whole() -> None:
    code = ("from vmjob import process\nwords = ['sh', '-c', 'sleep 0.5; cat; echo; yes | head -c 1000000 >&2']\n"
            "done = process.run(words, input=b'x' * 3000000, timeout=20)\nprint(len(done.stdout), len(done.stderr))\n"
            "process.run(['true'], input=b'x' * 3000000)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert done.stdout == b"3000001 1000000\n", done.stderr


DEAF = """
import os, signal, sys, threading, time
from vmjob.errors import Interrupted
from vmjob.interrupt import PATIENCE, Signals
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
try:
    with Signals(0.3):
        os.read(os.pipe()[0], 1)  # nobody asks in here
except Interrupted:
    sys.exit(5)
"""


def test_a_step_that_never_asks_hears_it_too() -> None:
    assert subprocess.run([sys.executable, "-c", DEAF], capture_output=True, timeout=15).returncode == 5


# ---------------------------------------------------------------- the network


def test_passt_killed_under_a_guest_that_needs_none_any_more(cli: Cli) -> None:
    run = started(cli, program=("sh", "-c", "echo up; sleep 5"))
    if not any("passt" in Path(f"/proc/{pid}/cmdline").read_text() for pid in
               Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()):
        run.kill()
        run.communicate()
        pytest.skip("needs passt, and a route out")
    os.kill(helper_of(run, "passt"), signal.SIGKILL)
    result = ended(cli, run, 0, "")
    assert result["outcome"] == "ok" and result["network_lost"] == "passt was killed by SIGKILL"
    assert "network was lost" in result["notes"][0]


def test_passt_killed_under_a_program_that_fails(cli: Cli) -> None:
    """Attack lost_network. The program's own status stands, and beside it the reason that it may have."""
    run = started(cli, program=("sh", "-c", "echo up; sleep 5; exit 3"))
    try:
        os.kill(helper_of(run, "passt"), signal.SIGKILL)
    except AssertionError:
        run.kill()
        run.communicate()
        pytest.skip("needs passt, and a route out")
    result = ended(cli, run, 3, "NetworkLost")
    assert result["outcome"] == "program-failed" and result["failure"]["transient"]


def test_passt_killed_while_it_boots_gets_a_second_boot(cli: Cli) -> None:
    path = variant(cli, cmdline="rdinit=/bin/cat")
    before = set(qemus())
    run = cli.start("run", "--image", path, "--results", "res", "--", "true")
    wait_for(lambda: set(qemus()) - before)
    first = set(qemus()) - before
    try:
        os.kill(helper_of(run, "passt"), signal.SIGKILL)
        wait_for(lambda: set(qemus()) - before - first)
        run.send_signal(signal.SIGTERM)
    except AssertionError:
        run.kill()
        run.communicate()
        pytest.skip("needs passt, and a route out")
    result = ended(cli, run, 225, "Interrupted")
    assert result["boot_attempts"] == 2


# ---------------------------------------------------------------- what the node does


def test_the_scratch_folder_is_tidied_up_in_mid_run(cli: Cli) -> None:
    """Attack node_faults."""
    run = started(cli, "--output", "x")
    for folder in (cli.cwd / "scratch").iterdir():
        shutil.rmtree(folder)
    result = ended(cli, run, 230, "ScratchLost")
    assert result["failure"]["transient"] and "tidies up" in result["failure"]["hint"]


def test_one_file_of_it_is_tidied_up(cli: Cli) -> None:
    """An old file goes, as tmp cleaners do it; it is seen when it is looked for."""
    run = started(cli, "--output", "x", program=("sh", "-c", "echo up; echo 1 >x; sleep 3"))
    (disk,) = (cli.cwd / "scratch").glob("*/out.raw")
    disk.unlink()
    result = ended(cli, run, 230, "ScratchLost")
    assert result["exit_status"] == 0


def test_no_descriptors_to_be_had(cli: Cli) -> None:
    (cli.cwd / "scratch").mkdir()
    done = subprocess.run([sys.executable, "-m", "vmjob", "run", "--image", "micro", "--results", "res", "--", "true"],
                          cwd=cli.cwd, env=cli.environment(), capture_output=True, timeout=100,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (18, 18)))
    result = result_of(cli.cwd / "res")
    assert (done.returncode, result["failure"]["kind"]) == (230, "NodeExhausted"), done.stderr
    assert result["failure"]["transient"] and cli.left_over() == []


LIBRARY = """
import threading
import vmjob
for _ in range(2):
    result = vmjob.run_job(vmjob.Job(name="x", image="micro", command=("true",)))
    assert result.outcome == "ok", result
print([one.name for one in threading.enumerate()])
"""


def test_the_library_leaves_no_thread(cli: Cli) -> None:
    (cli.cwd / "scratch").mkdir()
    done = subprocess.run([sys.executable, "-c", LIBRARY], cwd=cli.cwd, env=cli.environment(), capture_output=True,
                          timeout=100)
    assert done.stdout == b"['MainThread']\n", done.stderr
