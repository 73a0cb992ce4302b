"""A bridge on the machine, and a network namespace with a link to it for each host."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.site.layout import BRIDGE, GATEWAY, HOSTS, NET, Host


def ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout if not done.returncode else ""


def free() -> None:
    """Raises RuntimeError where our addresses are somebody else's."""
    for line in ip("-4", "route", "show").splitlines():
        if line.startswith(f"{NET}.") and f"dev {BRIDGE} " not in f"{line} ":
            raise RuntimeError(f"{NET}.0/24 is in use here ({line.strip()}): set VMJOB_SITE_NET, as 10.213.0")


def ensure() -> set[str]:
    """Bridge and namespaces as they should be; returns the names of hosts whose namespace is new."""
    free()
    if f"{GATEWAY}/24" not in ip("-4", "-br", "address", "show", BRIDGE, check=False):
        ip("link", "delete", BRIDGE, check=False)
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        # the hosts have a default route, as real ones do, but it leads nowhere
        Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/forwarding").write_text("0")
        ip("link", "set", BRIDGE, "up")
    return {host.name for host in HOSTS.values() if _ensure(host)}


def _ensure(host: Host) -> bool:
    name = host.namespace
    inside = ip("-n", name, "-4", "-br", "address", "show", "eth0", check=False)
    outside = ip("-o", "link", "show", name, check=False)
    routed = "default" in ip("-n", name, "route", check=False)  # the last thing that is made
    if f"{host.address}/24" in inside and outside and routed:
        ip("link", "set", name, "master", BRIDGE, "up")
        return False
    _delete(host)
    ip("netns", "add", name)
    ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    ip("link", "set", name, "master", BRIDGE, "up")
    ip("-n", name, "link", "set", "lo", "up")
    ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    ip("-n", name, "route", "add", "default", "via", GATEWAY)
    return True


def cut(host: Host) -> None:
    """Nothing passes between this host and all others; connections stay open on both ends."""
    ip("link", "set", host.namespace, "down")


def heal(host: Host) -> None:
    ip("link", "set", host.namespace, "up")
    ip("-n", host.namespace, "neighbour", "flush", "nud", "permanent", check=False)


def wall(host: Host, other: Host) -> None:
    """Nothing that ``host`` sends reaches ``other``, and nobody says so, as with a firewall that drops packets."""
    ip("-n", host.namespace, "neighbour", "replace", other.address, "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud",
       "permanent")


def processes(host: Host) -> list[int]:
    """Every process in the namespace, by its number on the machine."""
    return [int(word) for word in ip("netns", "pids", host.namespace, check=False).split()]


def strays(host: Host) -> list[int]:
    """The host's bubblewraps, wherever: a namespace can lose its name while its processes live on."""
    found, folder = [], os.fsencode(host.folder / "run")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] in (b"sh", b"bwrap") and b"--bind" in words and folder in words:
                    found.append(int(entry.name))
    return found


def kill(host: Host) -> None:
    """Ends whatever runs in the host, with the processes that hold it; returns when all is gone."""
    deadline = time.monotonic() + 20
    while pids := [*processes(host), *strays(host)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{host.name}: processes {pids} cannot be killed")
        time.sleep(0.02)


def _delete(host: Host) -> None:
    kill(host)
    ip("netns", "delete", host.namespace, check=False)
    # the link goes with the namespace, but late
    ip("link", "delete", host.namespace, check=False)


def remove() -> None:
    for host in HOSTS.values():
        _delete(host)
    ip("link", "delete", BRIDGE, check=False)


def there() -> list[str]:
    """What of ours is on the machine: namespaces and links."""
    names = [line.split()[0] for line in ip("netns", "list").splitlines() if line]
    links = [line.split()[0].split("@")[0] for line in ip("-br", "link").splitlines() if line]
    ours = {BRIDGE, *(host.namespace for host in HOSTS.values())}
    return sorted(f"namespace {n}" for n in names if n in ours) + sorted(f"link {n}" for n in links if n in ours)
