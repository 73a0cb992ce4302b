"""1 GiB from guest to host: the agent's output disk, beside a raw O_DIRECT dd and beside TCP through user-mode NAT.

Timed by the host's clock. The program in the guest makes the file, then copies it with dd onto a free part of the very
output disk, saying when; when it has ended the agent writes the same file, and the time is from the program's last
word until the disk's file on the host has all of it. Unpacking on the host has a row of its own.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import Bench, Goal, Row
from bench.run import bare
from vmjob.image.build.cpio import Tree

_MIB = 1 << 20
_SIZE = 1024 * _MIB
_TCP_SIZE = 256 * _MIB  # a rate; more of it would only take longer


def _make(big: str, size: int) -> str:
    """Shell that makes a file whose bytes do not compress."""
    return (f"dd if=/dev/urandom of=/seed bs=1M count=64; i=0\n"
            f"while [ $i -lt {size // _MIB // 64} ]; do cat /seed; i=$((i + 1)); done >{big}; rm /seed\n")


_JOB = """exec 2>/dev/null
for entry in /sys/block/*/serial; do
    read -r name <$entry; entry=${entry%/serial}
    [ "$name" = vmjob-out ] && disk=/dev/${entry##*/}
done
""" + _make("big", _SIZE) + """
copy() { echo begin; dd if=$1 of=$disk bs=1M count=1024 seek=$2 oflag=direct conv=notrunc && echo end; }
copy big 1100
copy /dev/zero 2200
echo last
"""
_TCP_INIT = """#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
cd /lib/vmjob
for list in order order.net; do while read -r module; do insmod $module; done <$list; done
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
""" + _make("/big", _TCP_SIZE) + """
nc 10.0.2.2 PORT </big
poweroff -f
"""


def measure(bench: Bench) -> list[Row]:
    times: list[tuple[float, ...]] = [(*_run(bench), _tcp(bench)) for _ in range(bench.rounds)]
    agent, raw, zero, collect, tcp = map(statistics.median, zip(*times))
    return [Row("1 GiB of outputs, guest to host", agent, raw, "MB/s", Goal("ratio", ">=", 0.8),
                "dd of the same file, O_DIRECT"),
            Row("the same beside a dd that reads no file", agent, zero, "MB/s", peer="dd if=/dev/zero, O_DIRECT"),
            Row("1 GiB of outputs, beside TCP", agent, tcp, "MB/s", Goal("ratio", ">=", 20),
                "nc through QEMU's user-mode NAT"),
            Row("1 GiB of outputs, until unpacked on the host and vmjob has ended", collect)]


def _run(bench: Bench) -> tuple[float, float, float, float]:
    """MB/s of the agent, of dd, of dd from /dev/zero, and seconds from the program's end to vmjob's."""
    with bench.folder() as work:
        argv = bench.words("run", "-q", "--image", "micro", "--user", "root", "--memory", "3GiB", "--disk", "4GiB",
                           "--network", "none", "--output", "big", "--results", work / "out", "--scratch", work,
                           "--", "sh", "-c", _JOB)
        job = subprocess.Popen(argv, env=bench.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
        assert job.stdout
        said = []
        for line in job.stdout:
            said.append((line.strip().decode(), time.perf_counter()))
            if said[-1][0] == "last":
                break
        if [word for word, _ in said] != ["begin", "end", "begin", "end", "last"]:
            job.kill()
            raise RuntimeError(f"the job said {said}: {job.communicate()[1].decode()[-300:]}")
        written = _wait_for(work, job, 3 * _SIZE)
        _, complaint = job.communicate(timeout=120)
        ended = time.perf_counter()
        if job.returncode or (work / "out/big").stat().st_size != _SIZE:
            raise RuntimeError(f"the job failed: {complaint.decode()[-300:]}")
    at = [moment for _, moment in said]
    size = _SIZE / 1e6
    return size / (written - at[4]), size / (at[1] - at[0]), size / (at[3] - at[2]), ended - at[4]


def _wait_for(work: Path, job: subprocess.Popen[bytes], size: int) -> float:
    """The moment at which the output disk's file holds ``size`` bytes."""
    disk = next(work.rglob("out.raw"))
    while job.poll() is None:
        try:
            if disk.stat().st_blocks * 512 >= size:
                return time.perf_counter()
        except FileNotFoundError:
            break
        time.sleep(0.002)
    raise RuntimeError("the run ended before its outputs were seen on the disk")


def _tcp(bench: Bench) -> float:
    """MB/s that a guest sends to a listener on the host."""
    with bench.folder() as work, _listener() as listener:
        argv = bare(bench, work)
        tree = Tree()
        tree.file("tcp", _TCP_INIT.replace("PORT", str(listener.getsockname()[1])).encode(), 0o755)
        with (work / "initrd").open("ab") as file:
            file.write(tree.pack())
        argv[argv.index("-append") + 1] = argv[argv.index("-append") + 1].replace("rdinit=/poweroff", "rdinit=/tcp")
        card = "virtio-net-device" if argv[argv.index("-machine") + 1].startswith("microvm") else "virtio-net-pci"
        guest = subprocess.Popen([*argv, "-netdev", "user,id=net0", "-device", f"{card},netdev=net0"],
                                 stdin=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            with connection:
                got, start = len(connection.recv(1 << 20)), time.perf_counter()
                while data := connection.recv(1 << 20):
                    got += len(data)
                took = time.perf_counter() - start
            guest.wait(30)
        finally:
            guest.kill()
            guest.wait()
    if got != _TCP_SIZE:
        raise RuntimeError(f"{got} bytes came by TCP")
    return got / 1e6 / took


@contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(120)
        yield listener
