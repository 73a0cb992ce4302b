"""The whole site: up, down, and what tests do to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from tests.site import client, hosts, inside, knobs, network, root, tokens
from tests.site.layout import COLLECTORS, EXECUTE, HOSTS, SITE, Host

READY_SECONDS = 60
MARK = SITE / "brought-up-by-tests"  # so the last of the tests takes it down


def up() -> Site:
    """The site, running and healthy: made, repaired, or only looked at. Returns when both pools answer."""
    _needs()
    place = root.ensure()
    with root.locked("site"):
        network.ensure()
        down = [host for host in HOSTS.values() if not _alive(host)]
        if len(down) == len(HOSTS):
            _clean()
        for host in down:
            network.kill(host)
            hosts.prepare(host, place)
        if len(down) == len(HOSTS) or not client.ENV.exists():
            if len(down) < len(HOSTS):  # half made: begin again
                down = list(HOSTS.values())
                for host in down:
                    network.kill(host)
                    hosts.prepare(host, place)
            tokens.make(place)
            client.write(place)
        for host in down:
            hosts.start(host, place)
        site = Site(place)
        site.wait_until_ready()
    return site


def down() -> None:
    """Ends everything; keeps the root and the logs."""
    with root.locked("site"):
        network.remove()
        for host in HOSTS.values():
            for part in host.folder.glob("*"):
                if part.name not in ("log", "console"):
                    _remove(part)
        for part in (client.CLIENT, client.BIN, client.ENV, MARK):
            _remove(part)


def running() -> bool:
    """Whether the site is up, healthy or not."""
    return bool(network.there())


def why_not() -> Optional[str]:
    """Why this machine cannot run the site, None if it can."""
    missing = [tool for tool in ("ip", "bwrap", "mmdebstrap", "nsenter", "setpriv") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install iproute2 bubblewrap mmdebstrap util-linux"
    if inside.needed():
        return inside.why_not()
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "needs network namespaces, which this machine does not give to root (a container?)"
    return None


def _needs() -> None:
    reason = why_not()
    if reason:
        raise RuntimeError(reason)


def _alive(host: Host) -> bool:
    """All daemons of the host run, master included."""
    programs = {process.program for process in hosts.processes(host)}
    return {f"condor_{name.lower()}" for name in ("MASTER", *host.daemons)} <= programs


def _clean() -> None:
    for part in SITE.iterdir():
        if not part.name.startswith("root-") and part.suffix != ".lock":
            _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Site:
    """The running site. Hosts are named vo, ce, n1, n2, and c2, which is another site's."""

    root: Path

    @property
    def ce(self) -> str:
        """host:port of the compute element's collector."""
        return COLLECTORS["ce"]

    @property
    def c2(self) -> str:
        """The same of the second site."""
        return COLLECTORS["c2"]

    @property
    def vo(self) -> str:
        return COLLECTORS["vo"]

    def environment(self, user: str = "alice") -> dict[str, str]:
        """The environment for a client on this machine that is ``user`` at the CE and ada at the VO."""
        return {**os.environ, **client.environment(user), "PATH": f"{client.BIN}:{os.environ['PATH']}"}

    def exec(self, host: str, user: str, argv: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        return hosts.execute(HOSTS[host], user, argv, **more)

    def processes(self, host: str) -> list[hosts.Process]:
        return list(hosts.processes(HOSTS[host]))

    def kill(self, host: str, program: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signals every process of that program (its name, as condor_startd); returns how many there were."""
        return hosts.send(HOSTS[host], program, number)

    def stop_host(self, host: str) -> None:
        """The host loses power: its processes are gone, its disk stays."""
        network.kill(HOSTS[host])

    def start_host(self, host: str) -> None:
        if hosts.init(HOSTS[host]) is None:
            hosts.start(HOSTS[host], self.root)

    def cut(self, host: str) -> None:
        network.cut(HOSTS[host])

    def wall(self, host: str, other: str) -> None:
        """Nothing that ``host`` sends reaches ``other`` any more, and nobody says so."""
        network.wall(HOSTS[host], HOSTS[other])

    def heal(self, host: str) -> None:
        """After cut and wall."""
        network.heal(HOSTS[host])

    def restart(self, host: str, daemon: str) -> None:
        """Ends a daemon (schedd, startd, …) in order; condor_master starts it again. Back at once."""
        self.kill(host, f"condor_{daemon}", signal.SIGQUIT)

    def config(self, host: str, text: str) -> None:
        """Extra configuration of a host, in place of what was given before ('' for none); the daemons reread."""
        (HOSTS[host].folder / "config.d/90-test.config").write_text(text)
        self.kill(host, "condor_master", signal.SIGHUP)

    def hide(self, host: str, *paths: str) -> None:
        """To jobs that start from now on these files of the host do not exist."""
        knobs.hide(HOSTS[host], *paths)

    def small_scratch(self, host: str, mebibytes: int, folder: str = EXECUTE) -> None:
        """All jobs of the host that start from now on share a disk of this size, or find it at ``folder``."""
        knobs.small_scratch(HOSTS[host], mebibytes, folder)

    def traffic(self, host: str) -> tuple[int, int]:
        """Bytes that the host has received and sent since the site is up, all protocols, link headers included."""
        return knobs.traffic(HOSTS[host])

    def mend(self) -> None:
        """Undoes all of the above; returns when the site is whole again. Jobs are left alone."""
        for host in HOSTS.values():
            network.heal(host)
            knobs.undo(host)
            if (host.folder / "config.d/90-test.config").exists():
                (host.folder / "config.d/90-test.config").unlink()
                self.kill(host.name, "condor_master", signal.SIGHUP)
            self.start_host(host.name)
        self.wait_until_ready()

    def ready(self) -> bool:
        """Whether all daemons run, each collector knows its schedd, and that of the CE all its nodes."""
        if not all(_alive(host) for host in HOSTS.values()):
            return False
        wanted = {(host.pool, what): {one.full_name for one in HOSTS.values()
                                      if one.pool == host.pool and daemon in one.daemons}
                  for host in HOSTS.values() for what, daemon in (("Scheduler", "SCHEDD"), ("Machine", "STARTD"))}
        seen: dict[tuple[str, str], set[str]] = {}
        for pool in COLLECTORS:
            done = self.exec(pool, "root", ["condor_status", "-any", "-af", "MyType", "Machine", "DaemonStartTime"])
            for line in done.stdout.splitlines():
                kind, machine, since = line.split()
                host = HOSTS.get(machine.split(".")[0])
                # an ad of before the host was last started says nothing
                if host and since.isdigit() and int(since) >= int(hosts.started(host)):
                    seen.setdefault((pool, kind), set()).add(machine)
        return all(names <= seen.get(key, set()) for key, names in wanted.items())

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Raises RuntimeError with what the daemons said when the site is not whole after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{h.name}: {_tail(h.folder / 'console')}{_tail(h.log / 'MasterLog')}"
                                 for h in HOSTS.values())
                raise RuntimeError(f"the test site is not ready after {seconds} s; logs are in {SITE}/*/log\n{logs}")
            time.sleep(0.2)


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-600:]
    except OSError:
        return ""
