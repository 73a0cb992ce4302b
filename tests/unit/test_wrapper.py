"""The wrapper, run for real with a stand-in for vmjob.pyz."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

WRAPPER = Path(__file__).parents[2] / "wrappers" / "vmjob-wrapper.sh"
SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]
PROGRAM = """
import json, os, signal, sys, time
waiting = sorted(signal.pthread_sigmask(signal.SIG_UNBLOCK, []))
if "unblock" in sys.argv or "wait" in sys.argv:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.Signals)
print(json.dumps({"args": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd(), "waiting": waiting,
      "flags": [sys.flags.ignore_environment, sys.flags.no_user_site]}), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "pay load"
    folder.mkdir()
    shutil.copy(WRAPPER, folder / "vmjob-wrapper.sh")
    with zipfile.ZipFile(folder / "vmjob.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    (tmp_path / "slot").mkdir()
    return folder


def environ(tmp_path: Path, python: bool = True) -> dict[str, str]:
    """A PATH with little more than a shell on it."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in ("cat", "sh"):
        (bin_ / tool).symlink_to(shutil.which(tool) or "")
    if python:
        (bin_ / "python3.27").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # younger than the wrapper
        (bin_ / "python3.27").chmod(0o755)
    (bin_ / "python3").write_text("#!/bin/sh\nexit 1\n")  # too old, or broken
    (bin_ / "python3").chmod(0o755)
    return {"PATH": str(bin_), "PYTHONHOME": "/nonsense"}


def run(shell: list[str], script: Any, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    words = [shutil.which(shell[0]) or "", *shell[1:], str(script), *args]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **more)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_finds_a_python_and_becomes_it(payload: Path, tmp_path: Path, shell: list[str]) -> None:
    for folder in (payload, payload.parent):
        folder.chmod(0o555)  # a payload folder may be read-only
    try:
        payload.parent.chmod(0o755)
        done = run(shell, payload / "vmjob-wrapper.sh", "--scratch", "a b", cwd=tmp_path / "slot",
                   env=environ(tmp_path))
    finally:
        payload.chmod(0o755)
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert told["args"] == ["slot-run", "--payload", str(payload), "--scratch", "a b"]
    assert told["cwd"] == str(tmp_path / "slot") and told["flags"] == [1, 1]
    assert done.stderr == "" and [path.name for path in (tmp_path / "slot").iterdir()] == ["result.json"]
    begun = json.loads((tmp_path / "slot/result.json").read_text())
    assert (begun["outcome"], begun["failure"]["kind"], begun["failure"]["transient"]) == ("begun", "Killed", True)
    check(begun)


def test_started_in_its_own_folder(payload: Path, tmp_path: Path) -> None:
    done = run(["sh"], "vmjob-wrapper.sh", cwd=payload, env=environ(tmp_path))
    assert json.loads(done.stdout)["args"][-1] == str(payload)


def test_given_python_comes_first(payload: Path, tmp_path: Path) -> None:
    env = {**environ(tmp_path, python=False), "VMJOB_PYTHON": sys.executable}
    assert run(["sh"], payload / "vmjob-wrapper.sh", cwd=tmp_path / "slot", env=env).returncode == 7


def test_signals_reach_vmjob_itself(payload: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([shutil.which("sh") or "", str(payload / "vmjob-wrapper.sh"), "wait"],
                               stdout=subprocess.PIPE, cwd=tmp_path / "slot", env=environ(tmp_path))
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["pid"] == process.pid  # nothing is left in between
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    process.stdout.close()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_no_python(payload: Path, tmp_path: Path, shell: list[str]) -> None:
    script = payload / "vmjob-wrapper.sh"
    script.write_text(script.read_text().replace("/usr/libexec/platform-python", "").replace("/usr/bin/python3", ""))
    done = run(shell, payload / "vmjob-wrapper.sh", cwd=tmp_path / "slot", env=environ(tmp_path, python=False))
    assert done.returncode == 236 and "VMJOB_PYTHON" in done.stderr
    result = json.loads((tmp_path / "slot/result.json").read_text())
    assert (result["outcome"], result["status"], result["failure"]["kind"]) == ("failed", 236, "CommandMissing")
    check(result)


def test_lone_wrapper(payload: Path, tmp_path: Path) -> None:
    (payload / "vmjob.pyz").unlink()
    done = run(["sh"], payload / "vmjob-wrapper.sh", cwd=tmp_path / "slot", env=environ(tmp_path))
    assert done.returncode == 200 and "vmjob.pyz" in done.stderr
    check(json.loads((tmp_path / "slot/result.json").read_text()))


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_a_pyz_that_is_cut_short(payload: Path, tmp_path: Path, shell: list[str]) -> None:
    pyz = payload / "vmjob.pyz"
    pyz.write_bytes(pyz.read_bytes()[:-10])
    done = run(shell, payload / "vmjob-wrapper.sh", cwd=tmp_path / "slot", env=environ(tmp_path))
    assert done.returncode == 200 and "vmjob.pyz is cut short" in done.stderr and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "slot/result.json").read_text())
    assert result["failure"]["kind"] == "JobError"
    check(result)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("words", [("--pack", "a b.tar"), ("-q", "--pack=a b.tar")])
def test_what_the_batch_system_waits_for_is_there(payload: Path, tmp_path: Path, shell: list[str],
                                                  words: tuple[str, ...]) -> None:
    (payload / "vmjob.pyz").unlink()
    env = environ(tmp_path)
    for tool in ("tar", "mv"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    assert run(shell, payload / "vmjob-wrapper.sh", *words, cwd=tmp_path / "slot", env=env).returncode == 200
    with tarfile.open(tmp_path / "slot/a b.tar") as archive:
        assert archive.getnames() == ["result.json"]
    assert not (tmp_path / "slot/a b.tar.part").exists()


def test_looking_in_leaves_the_result_alone(payload: Path, tmp_path: Path) -> None:
    env, script = environ(tmp_path), payload / "vmjob-wrapper.sh"
    done = run(["sh"], script, "attach", "shell", "--scratch", "a b", cwd=tmp_path / "slot", env=env)
    assert json.loads(done.stdout)["args"] == ["slot-attach", "shell", "--scratch", "a b"]
    (payload / "vmjob.pyz").unlink()
    assert run(["sh"], script, "attach", "shell", cwd=tmp_path / "slot", env=env).returncode == 200
    assert list((tmp_path / "slot").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere: run the tests as an ordinary user")
def test_result_goes_to_scratch_where_here_is_read_only(payload: Path, tmp_path: Path) -> None:
    (payload / "vmjob.pyz").unlink()
    payload.chmod(0o555)
    env = {**environ(tmp_path), "_CONDOR_SCRATCH_DIR": str(tmp_path / "slot")}
    try:
        run(["sh"], payload / "vmjob-wrapper.sh", cwd=payload, env=env)
    finally:
        payload.chmod(0o755)
    assert (tmp_path / "slot/result.json").exists()


def check(result: Any) -> None:
    """The wrapper's result is one as any other."""
    from vmjob.result import Failure, Result
    from vmjob.schema import check as fits
    from vmjob.schema import schema_text

    model = Result(job="", outcome="failed", status=1, failure=Failure("", "", 1, "", "", True)).to_json()
    assert set(result) == set(model) and set(result["failure"]) == set(model["failure"])
    try:
        schema_text("result")
    except FileNotFoundError:
        pytest.skip("needs vmjob/schemas/result.schema.json: reinstall vmjob")
    fits(result, "result", "result.json")


def heard() -> None:
    """Whoever started the tests (nohup, a shell's &) may ignore these, and a shell cannot trap what is ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_there_is_a_python(payload: Path, tmp_path: Path, shell: list[str], name: str) -> None:
    """It comes while the wrapper still looks for one."""
    env, slow = environ(tmp_path), tmp_path / "bin/python3"
    os.mkfifo(tmp_path / "asked")
    slow.write_text(f"#!/bin/sh\necho >{tmp_path}/asked\nread line <{tmp_path}/asked\nexit 1\n")
    words = [shutil.which(shell[0]) or "", *shell[1:], str(payload / "vmjob-wrapper.sh")]
    process = subprocess.Popen(words, cwd=tmp_path / "slot", env=env, stderr=subprocess.PIPE, preexec_fn=heard)
    (tmp_path / "asked").read_bytes()
    process.send_signal(signal.SIGUSR1)  # nothing is there to pause
    process.send_signal(signal.Signals[name])
    with (tmp_path / "asked").open("r+b", buffering=0) as pipe:  # the reader may be gone by now
        pipe.write(b"go on\n")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 225 and f"stopped by {name}".encode() in said
    result = json.loads((tmp_path / "slot/result.json").read_text())
    assert (result["status"], result["failure"]["kind"], result["failure"]["transient"]) == (225, "Interrupted", True)
    check(result)


def test_signals_wait_while_python_starts(payload: Path, tmp_path: Path) -> None:
    env = environ(tmp_path)
    tool = shutil.which("env") or ""
    (tmp_path / "bin/env").symlink_to(tool)
    if subprocess.run([tool, "--block-signal=TERM", "true"], capture_output=True).returncode:
        pytest.skip("needs an env that can block signals: coreutils 8.31")
    done = run(["sh"], payload / "vmjob-wrapper.sh", cwd=tmp_path / "slot", env={**env, "PATH": f"{env['PATH']}:/bin"})
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1} <= set(json.loads(done.stdout)["waiting"])


def test_an_earlier_result_is_not_this_ones(payload: Path, tmp_path: Path) -> None:
    """In the folder that the results go to; where vmjob itself finds what was in it."""
    env, folder = environ(tmp_path), tmp_path / "slot/res"
    (tmp_path / "bin/mv").symlink_to(shutil.which("mv") or "")
    folder.mkdir()
    (folder / "result.json").write_text('{"outcome": "ok"}')
    run(["sh"], payload / "vmjob-wrapper.sh", "--results", "res", cwd=tmp_path / "slot", env=env)
    assert json.loads((folder / "result.json").read_text())["outcome"] == "begun"
    assert (folder / ".vmjob-earlier.json").read_text() == '{"outcome": "ok"}'


def test_shellcheck() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck: sudo apt-get install shellcheck")
    done = subprocess.run(["shellcheck", str(WRAPPER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
