"""Root in a real guest tries all that it can reach; nothing of the node changes but the results.

Real QEMU, kernel and agent, with the micro image. Each test also holds that the user's home, a neighbour's folder and
the store are as they were, and that no process and no scratch folder is left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.conftest import Cli, Done, qemus, result_of
from tests.hostile import guest, node
from vmjob import landlock
from vmjob.image.store import Store

pytestmark = pytest.mark.integration

SECRET = "a-secret-of-the-users"
MIB = 2**20


def listing(*folders: Path) -> dict[str, tuple[int, ...]]:
    """All that is below, as the system has it."""
    found = {}
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            seen = path.lstat()
            found[str(path)] = (seen.st_mode, seen.st_uid, seen.st_size, seen.st_mtime_ns, seen.st_ino)
    return found


@dataclass
class Around:
    """A node around a run: what the user has there, and the environment of a batch job with her secrets."""

    cli: Cli
    place: Path

    def env(self) -> dict[str, str]:
        home = str(self.place / "home")
        return {"HOME": home, "BEARER_TOKEN": f"{SECRET}-1", "X509_USER_PROXY": f"{home}/proxy-{SECRET}",
                "OIDC_SECRET": f"{SECRET}-2", "http_proxy": f"http://ada:{SECRET}@192.0.2.1:3128"}

    def words(self, script: str, *words: Any) -> tuple[Any, ...]:
        return ("run", "--image", "micro", "--accel", "tcg", "--user", "root", "--network", "none", "--memory",
                "256MiB", "--results", "r", *words, "--", "sh", "-c", script)

    def run(self, script: str, *words: Any, **env: str) -> Done:
        return self.cli(*self.words(script, *words), env={**self.env(), **env})

    @property
    def results(self) -> Path:
        return self.cli.cwd / "r"

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.results)) for path in self.results.rglob("*"))


@pytest.fixture
def around(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    place = tmp_path_factory.mktemp("node")
    (cli.cwd / "scratch").mkdir()
    for name in ("home/.ssh/id_ed25519", f"home/proxy-{SECRET}", "home/.bashrc", "neighbour/file"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"{SECRET}\n")
    blobs = cli.home / "store/blobs"
    before = listing(place, blobs)
    yield Around(cli, place)
    assert listing(place, blobs) == before
    assert not qemus() and not cli.left_over()
    assert sorted(path.name for path in cli.cwd.iterdir() if path.name.startswith(".")) == []


# ---------------------------------------------------------------- what lies in the guest


def test_nothing_secret_lies_in_a_guest(around: Around) -> None:
    """All disks, memory of the firmware, what QEMU tells the machine (fw_cfg), all files of the agent."""
    (around.cli.cwd / "fwcfg").write_bytes(guest.fwcfg())
    done = around.run(guest.LOOK, "--input", "fwcfg", "--output", "x", "--disk", "8MiB")
    said = done.out.decode(errors="replace")
    assert "looked" in said and "disk /dev/vd" in said and "== /run/vmjob/job/" in said, done.err
    assert said.count("console=ttyS0 quiet") >= 2, "fw_cfg was not read"
    for secret in (SECRET, str(around.place), str(around.cli.home), str(around.cli.cwd)):
        assert secret not in said, [line for line in said.split("\n") if secret in line]


# ---------------------------------------------------------------- the network


def in_a_node(around: Around, kind: str, *command: str) -> tuple[Done, list[tuple[str, str]]]:
    """The command in a node of its own, and what the services there heard."""
    images.need({"unshare": "util-linux", "ip": "iproute2", **({"passt": "passt"} if kind == "passt" else {})})
    apart = ["unshare", "-n", "-m", *([] if os.getuid() == 0 else ["-r"])]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs network and mount namespaces: run as root, or allow user namespaces")
    report = around.cli.cwd / "report"
    done = subprocess.run([*apart, sys.executable, "-m", "tests.hostile.node", kind, str(report), *command],
                          capture_output=True, cwd=around.cli.cwd, timeout=240,
                          env={**around.cli.environment(around.env()), "http_proxy": ""})
    assert report.exists(), done.stderr.decode()
    return (Done(done.returncode, done.stdout, done.stderr.decode()),
            [(name, protocol) for name, protocol in json.loads(report.read_text())])


UNGUARDED = """import runpy, sys
from vmjob.vm import guard
guard.permitted = lambda frame: True
sys.argv[0] = "vmjob"
runpy.run_module("vmjob", run_name="__main__")
"""


@pytest.mark.parametrize("kind", ["passt", "user", "user unguarded"])
def test_root_reaches_nothing_of_the_node(around: Around, kind: str) -> None:
    """Loopback, the node's resolver, a cloud's metadata, IPv6 forms, names that are bound to them, by both NATs;
    without the guard it would, or the tries were none."""
    nat, _, unguarded = kind.partition(" ")
    words = around.words(guest.REACH, "--network", "nat", "-v")
    start = ["-c", UNGUARDED] if unguarded else ["-m", "vmjob"]
    done, heard = in_a_node(around, nat, sys.executable, *start, *map(str, words))
    said = done.out.decode().split("\n")
    assert "tried" in said and done.status == 0, done.err
    network = result_of(around.results)["network"]
    assert ("passt" in network) is (nat == "passt"), network
    # the name server is one of the world's, and its answers are its own: they lead nowhere
    assert said.count("Address: 127.0.0.1") >= 1 and ("names", "udp") in heard
    assert said.count(f"reached {node.WORLD}") == 2  # before all tries and after them
    reached = {line.partition(" ")[2] for line in said if line.startswith("reached")} - {node.WORLD}
    strangers = {name for name, _ in heard} - {"world", "names"}
    if unguarded:
        assert {"10.0.2.2", "127.0.0.1", "169.254.169.254", "rebind.test"} <= reached
        assert strangers == {"loopback", "resolver", "metadata"}
        assert {("loopback", "udp"), ("metadata", "udp")} <= set(heard)
    else:
        assert not reached and not strangers, heard


def test_a_guest_without_network_has_no_card(around: Around) -> None:
    done = around.run("ls /sys/class/net; ip route; ls /sys/bus/pci/devices 2>/dev/null; "
                      "cat /sys/bus/virtio/devices/*/device; echo x | nc -w 1 10.0.2.2 80 || echo no")
    assert done.out.decode().split()[0] == "lo" and "no" in done.out.decode(), done.err
    assert "0x0001" not in done.out.decode()  # virtio's number of a network card


# ---------------------------------------------------------------- disks


@pytest.fixture
def with_disk(cli: Cli) -> str:
    """The micro image with a disk of its own, as a folder."""
    folder = cli.cwd / "image"
    folder.mkdir()
    disk = folder / "disk.qcow2"
    images.need({"qemu-img": "qemu-utils", "qemu-io": "qemu-utils"})
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "16M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x41 0 1M", disk], check=True, capture_output=True)
    micro = Store(cli.home / "store").find("micro")
    files = [{"role": file.role, "path": file.path, "format": file.format, "size": file.size, "sha256": file.sha256}
             for file in micro.files]
    for file in micro.files:
        shutil.copy(cli.home / "store/blobs/sha256" / file.sha256, folder / file.path)
    files.append({"role": "disk", "path": disk.name, "format": "qcow2", "size": disk.stat().st_size,
                  "virtual_size": 16 * MIB, "sha256": hashlib.sha256(disk.read_bytes()).hexdigest()})
    made = {"schema": 1, "name": "withdisk", "boot": ["job"], "files": files}
    (folder / "manifest.yaml").write_text(json.dumps(made))
    return str(folder)


def test_no_disk_is_written_but_the_runs_own(around: Around, with_disk: str) -> None:
    """Neither the image nor the inputs, nor the output disk behind its end."""
    (around.cli.cwd / "input").write_bytes(b"I" * 5000)
    before = listing(Path(with_disk))
    words = around.words(guest.WRITE, "--input", "input", "--output", "x", "--disk", "8MiB")
    done = around.cli(*(with_disk if word == "micro" else word for word in words), env=around.env())
    said = sorted(set(done.out.decode().split("\n")) - {""})
    wrote = [line for line in said if line.startswith("wrote")]
    assert wrote == ["wrote vmjob-out inside", "wrote vmjob-root inside"], done.out.decode() + done.err
    assert listing(Path(with_disk)) == before
    assert (around.cli.cwd / "input").read_bytes() == b"I" * 5000
    assert around.names() == ["console.log", "result.json"]  # what was written there is no archive


# ---------------------------------------------------------------- the ports


def test_the_agents_ports_open_once_and_a_forged_end_is_the_jobs_own(around: Around) -> None:
    """Root may end its own job as it likes; it gets nothing by it that a program would not."""
    done = around.run(guest.FORGE, "--output", "x")
    assert done.status == 0, done.err
    result = result_of(around.results)
    assert result["outcome"] == "ok" and result["outputs"] == ["x"]
    assert around.names() == ["console.log", "result.json", "x"]
    assert (around.results / "x").read_text() == "busy\n" * 6 + "made up\n"


def test_garbage_on_the_control_port_is_the_agents_failure(around: Around) -> None:
    done = around.run(guest.BABBLE, "--output", "x")
    result = result_of(around.results)
    assert result["failure"]["kind"] == "AgentFailed" and done.status == result["status"], done.err
    assert around.names() == ["console.log", "result.json"]
    assert done.err.isascii() or all(c.isprintable() or c == "\n" for c in done.err)


def test_the_guests_user_has_no_port(around: Around) -> None:
    done = around.run("for port in /dev/vport*; do echo exit 0 >$port && echo opened; done; ls -l /proc/self/fd; "
                      "id -u; exit 3",
                      "--user", "nobody")
    assert done.status == 3 and b"opened" not in done.out and b"vport" not in done.out, done.out


# ---------------------------------------------------------------- floods


def held(pid: int) -> dict[str, str]:
    """What /proc/PID/status says."""
    return dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M))


def test_floods_take_no_memory_and_qemu_has_nothing_to_give(around: Around) -> None:
    """200 MiB of stdout; and, while that guest stands there, what a guest would find that took QEMU
    over: no way to become another, no file of the user's, no secret in its environment."""
    process = around.cli.start(*around.words(guest.FLOOD), env=around.env())
    try:
        assert process.stdout
        count, end = 0, b""
        while not end.endswith(b"flooded\n"):
            data = process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            assert data, process.communicate()
            count, end = count + len(data), (end + data)[-20:]
        assert count == 200 * MIB + len(b"flooded\n")
        assert int(held(process.pid)["VmHWM"].split()[0]) < 120 * 1024  # KiB
        (qemu,) = qemus()
        qemu_is_shut_in(qemu, around)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 225 == result_of(around.results)["status"]


def qemu_is_shut_in(pid: int, around: Around) -> None:
    status = held(pid)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    if os.getuid():
        assert int(status["CapEff"], 16) == 0
    (cores,) = [line for line in Path(f"/proc/{pid}/limits").read_text().split("\n") if "core file" in line]
    assert cores.split()[4:6] == ["0", "0"]
    run = Path(f"/proc/{pid}/cwd").resolve()
    assert run.stat().st_mode & 0o777 == 0o700
    allowed = (f"{run}/", f"{around.cli.home}/store/blobs/", "/dev/", "socket:", "pipe:", "anon_inode:", "/usr/",
               "/memfd:")
    opened = [str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()]
    assert opened and all(name.startswith(allowed) for name in opened), opened
    if landlock.abi():  # the fence: libraries that are put into all programs are dropped, and so is all that is secret
        assert SECRET not in Path(f"/proc/{pid}/environ").read_text(errors="replace")


def test_a_fork_bomb_and_full_memory_stay_in_the_guest(around: Around) -> None:
    process = around.cli.start(*around.words(guest.BOMB), env=around.env())
    try:
        assert process.stdout and process.stdout.readline() == b"bomb\n", process.communicate()
        (qemu,) = qemus()
        children = Path(f"/proc/{qemu}/task/{qemu}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    result = result_of(around.results)
    # it may have panicked by itself before it was asked to end
    assert result["failure"]["kind"] in ("Interrupted", "KernelPanic", "GuestVanished"), err.decode()
    assert process.returncode == result["status"] and not children
    assert result["peak_memory"] < (256 + 400) * MIB


# ---------------------------------------------------------------- the end of a guest


@pytest.mark.parametrize("how", guest.POWER)
def test_power_at_odd_moments(around: Around, how: str) -> None:
    """A guest that ends before its outputs were told has none, whatever its program's status was."""
    done = around.run(guest.POWER[how], "--output", "x", VMJOB_SILENCE_TIMEOUT="10s")
    result = result_of(around.results)
    assert result["outcome"] != "ok" and done.status == result["status"] != 0, done.err
    # an emulated microvm does not always find out of a reset
    assert result["failure"]["kind"] in ("GuestVanished", "KernelPanic", "GuestHung", "GuestStarved"), done.err
    assert around.names() == ["console.log", "result.json"]


def test_a_clock_that_is_set_has_no_say(around: Around) -> None:
    done = around.run(guest.CLOCK, "--output", "*", "--walltime", "10m")
    result = result_of(around.results)
    assert done.status == 7 and result["outcome"] == "program-failed", done.err
    assert result["outputs"] == ["future", "past"] and 0 <= result["ended"] - result["started"] < 600


