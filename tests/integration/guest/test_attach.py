"""Looking into a guest that runs: its shell, through a pipe and on a terminal, and its console."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests import images
from tests.conftest import ROOT, Cli, Done, result_of
from vmjob.core.errors import SlotError
from vmjob.slot.running import running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@contextmanager
def guest(cli: Cli, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A job that runs beside the test; ended with it."""
    run = cli.start("run", "--image", "micro", *args)
    try:
        yield run
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
        with suppress(ValueError):
            run.communicate(timeout=60)


def attached(cli: Cli, what: str, text: str = "", timeout: float = 180) -> Done:
    done = subprocess.run([sys.executable, "-m", "vmjob", "slot-attach", what, "--scratch", cli.cwd / "scratch"],
                          input=text.encode(), capture_output=True, env=cli.environment(), timeout=timeout)
    return Done(done.returncode, done.stdout, done.stderr.decode())


class Terminal:
    """``slot-attach shell`` as a person has it: on a terminal of 33 lines and 101 columns."""

    def __init__(self, cli: Cli) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(33, 101)
        self.before = termios.tcgetattr(self.theirs)
        argv = [sys.executable, "-m", "vmjob", "slot-attach", "shell", "--scratch", str(cli.cwd / "scratch")]
        self.process = subprocess.Popen(argv, stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
                                        env={**cli.environment(), "TERM": "vt220"}, start_new_session=True)
        self.said = ""

    def __enter__(self) -> Terminal:
        os.set_blocking(self.ours, False)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def hear(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                self.said += os.read(self.ours, 65536).decode(errors="replace")
            found = re.search(pattern, self.said)
            if found:
                self.said = self.said[found.end():]
                return found
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.said!r}"
            time.sleep(0.02)


def test_commands_from_a_pipe(cli: Cli) -> None:
    odd = "it's \"$HOME\"\nand more"
    (cli.cwd / "beside").write_text("text\n")
    with guest(cli, "--env", f"ODD={odd}", "--input", "beside", "--", "sleep", "600") as run:
        done = attached(cli, "shell", 'cat beside; id -un; printf "%s\\n" "$ODD"; nosuch; exit 3')
        assert done.status == 3, done.err
        assert re.fullmatch(rf"text\nvmjob\n{re.escape(odd)}\n.*nosuch.*\n", done.out.decode())
        # without an exit the end of the input is the end; a program in between may eat what says so
        assert attached(cli, "shell", "cat\n").status == 0
        whole = attached(cli, "shell", "seq 200000\n")
        assert whole.out.decode().split() == [str(number) for number in range(1, 200001)]
        assert run.poll() is None


def test_a_terminal(cli: Cli) -> None:
    with guest(cli, "--", "sleep", "60"), Terminal(cli) as term:
        term.hear(r"Ctrl-\] leaves")
        term.type("stty size; tty; echo $TERM:$((6 * 7))\r")
        term.hear(r"33 101\s+/dev/hvc0\s+vt220:42")
        term.type("sleep 1000\r")
        term.hear("1000")
        time.sleep(0.5)
        term.type("\x03")
        term.type("echo after=$?\r")
        term.hear("after=130")
        term.type("sleep 1001\r")
        term.hear("1001")
        time.sleep(0.5)
        term.type("\x1a")
        term.hear("Stopped")
        term.resize(20, 70)
        for _ in range(20):
            term.type("stty size\r")
            if term.hear(r"\n(\d+ \d+)")[1] == "20 70":
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the new size did not reach the guest")
        second = attached(cli, "shell", "true")
        assert second.status == 223 and "somebody else" in second.err
        term.type("\x1d")
        assert term.process.wait(30) == 0
        assert termios.tcgetattr(term.theirs) == term.before
        again = attached(cli, "shell", "ps | grep -c '[s]leep 1001'; exit 0")
        assert again.out == b"0\n", again.err  # who leaves takes along what he started


def test_one_who_is_killed_leaves_the_guest_to_the_next(cli: Cli) -> None:
    with guest(cli, "--", "sleep", "60"):
        with Terminal(cli) as term:
            term.hear(r"Ctrl-\] leaves")
            term.type("sleep 1000\r")
            term.hear("1000")
            term.process.kill()
            term.process.wait()
        deadline = time.monotonic() + 20
        while (done := attached(cli, "shell", "echo here")).status == 223 and time.monotonic() < deadline:
            pass
        assert done.out == b"here\n", done.err


def test_the_end_of_the_program_ends_the_shell_and_nothing_else_changes(cli: Cli) -> None:
    with guest(cli, "-q", "--output", "made", "--results", "res", "--",
               "sh", "-c", "until [ -e go ]; do sleep 0.1; done; echo said; echo x > made; exit 7") as run:
        done = attached(cli, "shell", "sleep 1000 & touch go\nsleep 1000\n")
        assert done.status == 220 and "has ended" in done.err, done
        out, err = run.communicate(timeout=60)
    assert (out, run.returncode) == (b"said\n", 7), err
    assert result_of(cli.cwd / "res")["stop"] == "quit"
    assert cli.left_over() == []


def test_the_console_is_followed_to_the_end(cli: Cli) -> None:
    with guest(cli, "--user", "root", "--", "sh", "-c", "echo one >/dev/console; sleep 3; echo two >/dev/console"):
        done = attached(cli, "console")
    assert done.status == 0, done.err
    assert re.search(rb"one\r?\n(.*\n)*two", done.out)


def test_the_console_stops_when_nobody_reads(cli: Cli) -> None:
    with guest(cli, "--", "sleep", "60"):
        argv = [sys.executable, "-m", "vmjob", "slot-attach", "console", "--scratch", str(cli.cwd / "scratch")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=cli.environment()) as look:
            assert look.stdout and look.stdout.read(1)
            look.stdout.close()
            assert look.wait(30) == 0


@pytest.mark.image
@pytest.mark.timeout(900)
@pytest.mark.parametrize("boot", ["job", "system", "disk"])
def test_a_terminal_of_a_distribution(cli: Cli, home: Path, boot: str) -> None:
    disk = images.cloud_disks() / "bios.qcow2" if boot == "disk" else images.built(ROOT / "tests/debian.yaml")
    image = images.register(Cli(home, home), disk)
    program = "until [ -e go ]; do sleep 0.2; done"
    run = cli.start("run", "-q", "--image", image, "--boot", boot, "--env", "ODD=it's", "--", "sh", "-c", program)
    try:
        with Terminal(cli) as term:
            term.hear(r"Ctrl-\] leaves", 600)
            term.type("stty size; tty; echo $ODD $(id -un) $PWD $((6 * 7))\r")
            term.hear(r"33 101\s+/dev/hvc0\s+it's vmjob /var/lib/vmjob/work 42")
            term.type("sleep 1000\r")
            term.hear("sleep 1000")
            time.sleep(1)
            term.type("\x03")
            term.type("echo after=$?; ps -t hvc0 -o comm= | grep -c getty\r")
            term.hear(r"after=130\s+0")
            term.type("exit 5\r")
            assert term.process.wait(60) == 5
        assert attached(cli, "shell", "touch go; sleep 1000\n").status == 220
        out, err = run.communicate(timeout=120)
        assert (run.returncode, out, err) == (0, b"", b"")
    finally:
        if run.poll() is None:
            run.terminate()
            run.communicate(timeout=60)


def test_no_guest(cli: Cli) -> None:
    dead = cli.cwd / "vmjob-run-dead"
    dead.mkdir()
    for name in (".lock", "attach.sock"):
        (dead / name).touch()
    with pytest.raises(SlotError, match="no guest of yours") as caught:
        running(Path(cli.cwd), 0.3, print)
    assert "--scratch" in caught.value.hint
