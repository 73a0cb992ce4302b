"""What one user of a node does to another, again and again until he is ended; with /usr's Python, as he may read no
other. Started as that user::

    python3 neighbour.py VICTIM-UID REPORT FOLDER…

FOLDERs: where both write. REPORT gets, line by line, what he achieved, and what he saw, each once.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_SEIZE = 0x4206  # PTRACE_SEIZE: stops nothing
_DONE: set[str] = set()


def note(what: str, report: Path) -> None:
    if what not in _DONE:
        _DONE.add(what)
        with report.open("a") as file:
            file.write(what.replace("\n", "\\n") + "\n")


def processes(victim: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == victim:
                yield int(entry.name)


def to_process(pid: int, report: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    place = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        words = (place / "cmdline").read_bytes().split(b"\0")
        note(f"saw {Path(words[0].decode()).name}", report)
        note("words " + b" ".join(words).decode(errors="replace"), report)
    for number in (signal.SIGCONT, signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            os.kill(pid, number)
            note(f"DID send {number.name}", report)
    for name in ("environ", "mem", "maps", "io", "stack"):
        with contextlib.suppress(OSError), (place / name).open("rb") as file:
            if file.read(1):  # of one that is gone there is nothing
                note(f"DID read /proc/PID/{name}", report)
    for name in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            (place / name).readlink()
            note(f"DID follow /proc/PID/{name}", report)
    with contextlib.suppress(OSError):
        for one in (place / "fd").iterdir():
            note(f"DID see descriptor {one.name}", report)
    if libc.ptrace(_SEIZE, pid, None, None) == 0:
        note("DID trace", report)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        note("DID slow down", report)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, {0})
        note("DID pin", report)


def to_file(path: Path, victim: int, report: Path, locks: list[int]) -> None:
    if path.lstat().st_uid != victim:
        return
    kind = path.parent.name
    for name, how in (("write", os.O_WRONLY), ("append", os.O_WRONLY | os.O_APPEND), ("read", os.O_RDONLY)):
        with contextlib.suppress(OSError):
            handle = os.open(path, how | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            note(f"DID {name} in {kind}: {re.sub('[0-9a-f]*[0-9][0-9a-f]*', '#', path.name)}", report)
            if len(locks) < 200:  # what can be read can be locked
                locks.append(handle)
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                os.close(handle)
    with contextlib.suppress(OSError):
        path.unlink()
        note(f"DID remove in {kind}: {path.name}", report)
    with contextlib.suppress(OSError):
        path.rename(path.with_name("taken"))
        note(f"DID rename in {kind}: {path.name}", report)
    with contextlib.suppress(OSError):
        path.chmod(0o777)
        note(f"DID chmod in {kind}: {path.name}", report)
    with contextlib.suppress(OSError):
        os.utime(path, (0, 0))
        note(f"DID touch in {kind}: {path.name}", report)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
        knock.connect(str(path))
        note(f"DID connect in {kind}: {path.name}", report)
    with contextlib.suppress(OSError):  # a second name, where the kernel does not forbid it
        os.link(path, path.parent / f"linked-{path.name}"[:200], follow_symlinks=False)


def ports(victim: int, report: Path) -> None:
    """Sockets on which the victim waits for strangers."""
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().split("\n")[1:]:
                words = line.split()
                if len(words) > 7 and words[7] == str(victim) and (words[3] == "0A" or table.startswith("udp")):
                    note(f"DID find {table} {words[1]}", report)
    for line in Path("/proc/net/unix").read_text().split("\n")[1:]:
        name = line.split()[7:8]
        if name and name[0].startswith("@") and "vmjob" in name[0]:
            note(f"DID find {name[0]}", report)


def main() -> None:
    victim, report, folders = int(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    locks: list[int] = []
    os.umask(0)
    note("began", report)
    while True:
        for pid in processes(victim):
            to_process(pid, report)
        ports(victim, report)
        for folder in folders:
            for here, below, files in os.walk(folder, onerror=None):
                for name in (*below, *files):
                    with contextlib.suppress(OSError):
                        to_file(Path(here, name), victim, report, locks)


if __name__ == "__main__":
    main()
