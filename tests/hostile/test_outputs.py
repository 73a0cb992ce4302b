"""A guest that returns what nobody asked for, more than anybody can use, or nothing at all."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli, qemus, result_of
from tests.hostile.hostile import QEMU, Hostile
from vmjob.progress import Reporter

pytestmark = pytest.mark.integration

# 200,000 empty files: minutes of work for nobody, seconds for who makes them
MANY = """
def guest(machine):
    machine.hello()
    header = tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT)
    with machine.disk.open("r+b", buffering=1 << 22) as disk:
        for n in range(200000):
            block = bytearray(header)
            block[:8] = b"x/%06d" % n
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\\0 " % sum(block)
            disk.write(block)
    machine.done()
"""


@pytest.fixture
def hostile(cli: Cli) -> Hostile:
    return Hostile(cli)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert process.poll() is None and time.monotonic() < end, "it did not come so far"
        time.sleep(0.01)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err.decode()


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("name", ["y", "vmjob-wrapper.sh", ".bashrc", ".ssh/authorized_keys", "d/../z", "x2",
                                  "payload.json"])
def test_what_nobody_asked_for(hostile: Hostile, name: str) -> None:
    """Attack overwrite."""
    done = hostile.run(f"""
        def guest(machine):
            machine.hello()
            tar(machine, ("x", b"asked for", 0o644), ({name!r}, b"evil", 0o755))
            machine.done()
        """, "--output", "x")
    assert done.status == 248 and name.split("/")[0] in done.err, done.err
    assert sorted(path.name for path in hostile.results.iterdir()) == ["console.log", "result.json"]
    assert result_of(hostile.results)["failure"]["kind"] == "OutputRefused"


@pytest.mark.parametrize("name", ["vmjob-wrapper.sh", "vmjob.pyz", "payload.json", "image/x", "token", "result.json",
                                  "list-0.smime", "_condor_stdout", "condor_exec.exe", "slurm-1.out", "stdout.txt"])
def test_no_pattern_takes_a_name_that_others_rely_on(hostile: Hostile, name: str) -> None:
    """Attack overwrite. In a slot, where results and payload are one folder; the next start runs the wrapper there."""
    packed = hostile.cli("pack", "--image", "micro", "--accel", "tcg", "--network", "none", "--output", "*", "-o",
                         "slot", "--", "true")
    assert packed.status == 0, packed.err
    slot = hostile.cli.cwd / "slot"
    before = {path: path.read_bytes() for path in sorted(slot.rglob("*")) if path.is_file()}
    guest = f"""
        def guest(machine):
            machine.hello()
            tar(machine, ("x", b"asked for", 0o644), ({name!r}, b"evil", 0o755))
            machine.done()
        """
    done = subprocess.run(["sh", "vmjob-wrapper.sh"], cwd=slot, capture_output=True, text=True, timeout=120,
                          env=hostile.cli.environment({**hostile.env(guest), "VMJOB_PYTHON": sys.executable}))
    assert done.returncode == 248, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert not (slot / "x").exists() and result_of(slot)["failure"]["kind"] == "OutputRefused"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
def test_modes_obey_the_umask(hostile: Hostile, mask: int) -> None:
    before = os.umask(mask)
    try:
        done = hostile.run("""
            def guest(machine):
                machine.hello()
                tar(machine, ("d/", b"", 0o7777), ("d/f", b"x", 0o6666), ("d/p", b"x", 0o4777), ("d/e/f", b"", 0o666))
                machine.done()
            """, "--output", "d")
    finally:
        os.umask(before)
    assert done.status == 0, done.err
    for name in ("d", "d/f", "d/p", "d/e", "d/e/f"):
        mode = (hostile.results / name).stat().st_mode & 0o7777
        assert not mode & (mask | 0o7002) and mode & 0o600 == 0o600, f"{name} {mode:o}"
        assert os.listxattr(hostile.results / name) == []


def test_names_do_not_steer_the_terminal(hostile: Hostile) -> None:
    done = hostile.run("""
        def guest(machine):
            machine.hello()
            tar(machine, ("\\x1b]0;evil\\x07\\u202e\\udcff\\r\\n", b"", 0o644))
            machine.done()
        """, "--output", "x")
    assert done.status == 248 and r"\x1b]0;evil\x07\u202e\xff\r\n" in done.err, done.err
    assert not any(c in done.err for c in "\x1b\x07\u202e\r")


def test_root_in_a_real_guest_writes_an_archive_of_its_own(cli: Cli) -> None:
    """The output disk begins with the program's own archive, whose first block is a partition table too; the agent is
    left with the partition, and writes behind it. Real QEMU, kernel and agent."""
    block = bytearray(tarfile.TarInfo("vmjob-wrapper.sh").tobuf(tarfile.GNU_FORMAT))
    block[446:510] = struct.pack("<BxxxBxxxII", 0, 0x83, 2048, 2048).ljust(64, b"\0")
    block[510:512] = b"\x55\xaa"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (cli.cwd / "evil").write_bytes(block + bytes(1024))
    script = """
        for serial in /sys/block/*/serial; do
            [ "$(cat "$serial")" != vmjob-out ] || { name=${serial#/sys/block/}; name=${name%/serial}; }
        done
        dd if=evil of="/dev/$name" conv=fsync 2>/dev/null && blockdev --rereadpt "/dev/$name" &&
            [ -b "/dev/${name}1" ] && mv "/dev/${name}1" "/dev/$name" && echo written
        echo asked >x
        """
    done = cli.micro("--user", "root", "--input", "evil", "--output", "x", "--results", "r", "--", "sh", "-c", script)
    assert done.out == b"written\n", done.err
    assert done.status == 248 and "vmjob-wrapper.sh" in done.err, done.err
    assert sorted(path.name for path in (cli.cwd / "r").iterdir()) == ["console.log", "result.json"]
    assert not qemus() and not cli.left_over()


def test_root_in_a_real_guest_changes_what_the_agent_was_told(cli: Cli) -> None:
    script = "echo asked >x; echo evil >vmjob.pyz; printf 'x\\nvmjob.pyz\\n' >/run/vmjob/job/outputs"
    done = cli.micro("--user", "root", "--output", "x", "--results", "r", "--", "sh", "-c", script)
    assert done.status == 248 and "vmjob.pyz" in done.err, done.err
    assert sorted(path.name for path in (cli.cwd / "r").iterdir()) == ["console.log", "result.json"]


# ---------------------------------------------------------------- how long it takes


def unpacking(hostile: Hostile) -> bool:
    """It has begun, and is far from its end."""
    return any(True for _ in hostile.results.glob(".vmjob-unpack-*/new/x/000*")) \
        or any(True for _ in hostile.results.glob(".vmjob-unpack-*/x/000*"))


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGHUP)])
def test_collect_hears_signals(hostile: Hostile, numbers: tuple[int, int]) -> None:
    """Attack slowtar.

    The first leaves it ten seconds, for outputs that are there are worth that; the second ends it at once."""
    process = hostile.start(MANY, "--output", "x")
    wait_for(lambda: unpacking(hostile), process)
    for number in numbers:
        process.send_signal(number)
    status, err = ended(process)
    result = result_of(hostile.results)
    assert status == 225 == result["status"], err
    assert result["failure"]["kind"] == "Interrupted" and result["failure"]["stage"] == "collect"
    assert sorted(path.name for path in hostile.results.iterdir()) == ["console.log", "result.json"]
    assert not hostile.cli.left_over()


def test_send_hears_signals(hostile: Hostile) -> None:
    """A storage that takes a file and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as storage:
        process = hostile.start("""
            def guest(machine):
                machine.hello()
                tar(machine, ("x", b"precious", 0o644))
                machine.done()
            """, "--output", "x", "--outputs-to", f"http://127.0.0.1:{storage.getsockname()[1]}/d/")
        storage.settimeout(60)
        visitor, _ = storage.accept()
        with visitor:
            process.send_signal(signal.SIGTERM)
            status, err = ended(process)
    result = result_of(hostile.results)
    assert status == 225 == result["status"] and result["failure"]["stage"] == "send", err
    assert (hostile.results / "x").read_bytes() == b"precious" and result["outputs"] == ["x"]


def test_a_console_that_never_ends(hostile: Hostile) -> None:
    """32 MiB, one line of it without an end, with words for a terminal in it."""
    done = hostile.run("""
        def guest(machine):
            machine.hello()
            machine.console.sendall(b"\\x1b]0;evil\\x07" * 100 + b"x" * (16 << 20) + b"a line\\r\\n" * (2 << 20))
            machine.done(3)
        """)
    assert done.status == 3, done.err
    assert (hostile.results / "console.log").stat().st_size <= 4 << 20
    assert (hostile.results / "result.json").stat().st_size < 100_000
    assert not any(c in done.err for c in "\x1b\x07")


# ---------------------------------------------------------------- QEMU's control socket

SILENT = """
import threading
def qmp(machine):
    {answer}
    open({seen!r}, "w").close()
    threading.Event().wait()
def guest(machine):
    threading.Event().wait()
"""
GREETS = 'machine.qmp.sendall(b\'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, ' \
         '"capabilities": []}}\\r\\n\')'


@pytest.mark.parametrize("answer", ["pass", GREETS, 'machine.qmp.sendall(b"{")'],
                         ids=["says-nothing", "greets-only", "half-a-greeting"])
def test_a_silent_control_socket_hears_sigterm(hostile: Hostile, answer: str) -> None:
    """Attack fakeqemu."""
    seen = hostile.cli.cwd / "connected"
    process = hostile.start(SILENT.format(answer=answer, seen=str(seen)))
    wait_for(seen.exists, process)
    process.send_signal(signal.SIGTERM)
    status, err = ended(process)
    assert status == 225 and "SIGTERM" in err, err
    assert result_of(hostile.results)["failure"]["stage"] == "boot" and not hostile.cli.left_over()


@pytest.mark.parametrize("answer", ["pass", GREETS], ids=["says-nothing", "greets-only"])
def test_a_silent_control_socket_is_the_nodes_fault(hostile: Hostile, monkeypatch: pytest.MonkeyPatch, answer: str,
                                                     tmp_path: Path) -> None:
    from vmjob import api
    from vmjob.model import Accel, Job, Network
    from vmjob.vm import machine

    monkeypatch.setattr(machine, "CONNECTED", 0.5)
    guest = SILENT.format(answer=answer, seen=str(tmp_path / "connected"))
    for name, value in hostile.cli.environment(hostile.env(guest)).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    hostile.results.mkdir()
    job = Job("silent", "micro", ("true",), network=Network.NONE, accel=Accel.TCG)
    result = api.run_job(job, base=tmp_path, results=hostile.results)
    assert result.failure and result.failure.kind == "QemuFailed" and result.failure.transient and result.status == 234
    assert "control socket" in result.failure.message and QEMU.exists()


def test_a_command_that_gets_no_answer(hostile: Hostile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job is to pause, and nobody can say whether it did: it must not run on as if it stood still."""
    from vmjob import api
    from vmjob.model import Accel, Job, Network
    from vmjob.vm import machine

    monkeypatch.setattr(machine, "_ANSWER", 0.5)
    asked = tmp_path / "asked"
    guest = f"""
import threading
def qmp(machine):
    {GREETS}
    machine.qmp.recv(65536)
    machine.qmp.sendall(b'{{"return": {{}}, "id": "__qmp#00000"}}\\r\\n')
    open({str(asked)!r}, "w").close()
    threading.Event().wait()
def guest(machine):
    machine.hello()
    threading.Event().wait()
"""
    for name, value in hostile.cli.environment(hostile.env(guest)).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    hostile.results.mkdir()

    class Pauses(Reporter):
        def stage_started(self, name: str) -> None:
            if name == "payload":
                os.kill(os.getpid(), signal.SIGUSR1)

    result = api.run_job(Job("mute", "micro", ("true",), network=Network.NONE, accel=Accel.TCG), base=tmp_path,
                         results=hostile.results, reporter=Pauses())
    assert asked.exists() and result.failure and result.failure.kind == "QemuFailed" and result.failure.transient
    assert "'stop'" in result.failure.message


# ---------------------------------------------------------------- what a terminal is shown


def test_an_images_description_does_not_steer_the_terminal(cli: Cli, tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.unit.test_image_store import image
    from vmjob.image.store import Store

    made = replace(image(tmp_path / "i", "evil", 2**20), description="\x1b]0;evil\x07\u202etxt\nmicro  sha256")
    Store(tmp_path / "store").add(made, tmp_path / "i")
    done = cli("image", "list", env={"VMJOB_HOME": str(tmp_path / "store")})
    assert done.status == 0 and r"\x1b]0;evil\x07\u202etxt\nmicro  sha256" in done.out.decode(), done.err
    assert len(done.out.splitlines()) == 1
    for words in (["inspect", "evil"], ["verify", "evil"]):
        done = cli("image", *words, env={"VMJOB_HOME": str(tmp_path / "store")})
        assert not any(c in done.out.decode() + done.err for c in "\x1b\x07\u202e"), words


def test_a_plan_does_not_steer_the_terminal(cli: Cli) -> None:
    done = cli("plan", "--image", "micro", "--accel", "tcg", "--output", "\u202e*", "--", "echo", "\x1b[2J")
    assert done.status == 0 and r"\x1b[2J" in done.out.decode() and r"\u202e*" in done.out.decode(), done.err
    assert not any(c in done.out.decode() + done.err for c in "\x1b\u202e")
