"""For who is not root: namespaces in which she is, with subordinate users for the site's, held by a sleeping process.

All of the site lives in them, and whoever uses it must be there too: see :func:`run`.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Optional

from tests.site import root
from tests.site.layout import REPOSITORY, SITE

# ip keeps the names of network namespaces in /run; this one has none but its own, and no way out
HOLD = "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec sleep infinity >/dev/null"


def needed() -> bool:
    return os.geteuid() != 0


def why_not() -> Optional[str]:
    """Why an ordinary user cannot have them here."""
    name = pwd.getpwuid(os.getuid()).pw_name
    done = subprocess.run([*root.AS_ROOT, "--net", "sh", "-c", HOLD.replace("exec sleep infinity", "true")],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (f"needs root, or user namespaces with subordinate users: {done.stderr.strip()} (it takes util-linux 2.38, "
            f"the package uidmap, and a range for {name} in /etc/subuid and /etc/subgid)")


def run(*command: str) -> int:
    """Runs a command in the namespaces, which are made if need be, and end when the site is down. Its exit status.
    There is no network inside but the site's: what must be fetched is there before."""
    pid = _hold()
    try:
        return subprocess.call([*_enter(pid), *command])
    finally:
        if not (SITE / "env.sh").exists():
            _release(pid)


def module(*words: str) -> list[str]:
    """Command line of this package in the namespaces."""
    return ["env", f"--chdir={REPOSITORY}", sys.executable, "-m", "tests.site", *words]


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--user", "--mount", "--net", f"--wd={Path.cwd()}"]


def _hold() -> int:
    """Number of the process that holds the namespaces."""
    with root.locked("holder"), (SITE / "namespaces.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # it lives
            file.seek(0)
            return int(file.read())
        holder = subprocess.Popen([*root.AS_ROOT, "--net", "sh", "-c", HOLD], cwd="/", stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, start_new_session=True, pass_fds=[file.fileno()])
        assert holder.stdout
        if not holder.stdout.readline():
            raise RuntimeError(f"no namespaces to be root in ({' '.join(root.AS_ROOT)}: {holder.wait()})")
        file.truncate(0)
        file.write(str(holder.pid))
        return holder.pid


def _release(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
