"""A BDII on a host of the test site: slapd and bdii-update as its distribution has them, run by an ordinary user."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.site import hosts
from tests.site.layout import HOSTS, USERS, Host
from vmjob.job.pyz import carried_pyz

USER = "ada"
PORT = 2170
GIP = ROOT / "ceMon-publisher/gip"
RUN = "bdii"  # the folder of all this in her home


@dataclass(frozen=True)
class Bdii:
    host: Host
    folder: Path  # on the machine; the same as ``inside`` in the host
    inside: str

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    def sh(self, script: str, **more: object) -> str:
        """Output of a shell script of hers on the host; stderr too where it fails."""
        done = hosts.execute(self.host, USER, ["sh", "-c", script], **more)
        if done.returncode:
            raise RuntimeError(f"{script}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def search(self, base: str, filter: str, *attributes: str) -> list[str]:
        """What ldapsearch finds: lines, without those that are empty; of what is not there, none."""
        done = hosts.execute(self.host, USER, ["ldapsearch", "-LLL", "-x", "-o", "ldif-wrap=no", "-H",
                                               f"ldap://127.0.0.1:{PORT}", "-b", base, filter, *attributes])
        if done.returncode not in (0, 32):
            raise RuntimeError(done.stderr)
        return [line for line in done.stdout.splitlines() if line]

    def put(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file of hers, as a whole."""
        path = self.folder / name
        spare = path.with_name(f".{path.name}")
        spare.write_text(text)
        spare.chmod(mode)
        os.chown(spare, USERS[USER], USERS[USER])
        return spare.replace(path)

    @property
    def log(self) -> str:
        return (self.folder / "bdii-update.log").read_text()

    def rejected(self) -> list[str]:
        """What slapd did not take, and all else that bdii-update complains of. It deletes parents before children,
        so that a tree goes by one level a round, with warnings: not ours to change."""
        return [line for line in self.log.splitlines() if ("[WARNING]" in line or "[ERROR]" in line)
                and not line.endswith(("not allowed on non-leaf (66)", "subordinate objects must be deleted first"))]

    def updates(self) -> int:
        """How many rounds bdii-update has made."""
        return self.log.count("Sleeping for")

    def next_round(self, seconds: float = 20) -> None:
        """Wait until all that is there now has been published."""
        wanted = self.updates() + 2
        until = time.monotonic() + seconds
        while self.updates() < wanted:
            assert time.monotonic() < until, self.log
            time.sleep(0.05)


def prepare(folders: Iterable[str] = ("run", "run/db", "db/grid", "db/glue", "db/stats", "archive", "gip/ldif",
                                      "gip/provider", "gip/plugin", "lib", "bin", "nodes", "vmjob")) -> Bdii:
    """The files: the package's own configuration with places of her own; our provider and plugin; vmjob-publish of this
    checkout. Nothing runs."""
    host = HOSTS["vo"]
    bdii = Bdii(host, host.folder / "home" / USER / RUN, f"/home/{USER}/{RUN}")
    _stop(bdii)
    shutil.rmtree(bdii.folder, ignore_errors=True)
    for name in folders:
        (bdii.folder / name).mkdir(parents=True)
    shutil.copy(carried_pyz(), bdii.folder / "lib/vmjob.pyz")
    shutil.copytree(ROOT / "ceMon-publisher/cemon_publisher", bdii.folder / "lib/cemon_publisher",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for path in (bdii.folder, *bdii.folder.rglob("*")):
        os.chown(path, USERS[USER], USERS[USER])
    inside = bdii.inside
    bdii.put("bin/vmjob-publish", f"#!/bin/sh\nPYTHONPATH={inside}/lib/vmjob.pyz:{inside}/lib exec python3 -m "
                                  'cemon_publisher "$@"\n', 0o755)
    bdii.sh(f"""set -e; cd /usr/share/bdii
                sed -e 's,/run/bdii,{inside}/run,; s,/var/lib/bdii/db,{inside}/db,' bdii-slapd.conf >{inside}/slapd.conf
                sed -e 's,/run/bdii,{inside}/run,; s,/var/lib/bdii,{inside},; s,/var/log/bdii,{inside},' \\
                    -e 's,^BDII_BREATHE_TIME=.*,BDII_BREATHE_TIME=0.2,; s,_LEVEL=.*,_LEVEL=INFO,' /etc/bdii/bdii.conf \\
                    >{inside}/bdii.conf
                echo BDII_RUN_DIR={inside}/run >>{inside}/bdii.conf
                cp default.ldif {inside}/gip/ldif/""")
    bdii.put("vmjob-gip.conf", f"PUBLISH='{inside}/bin/vmjob-publish --config {inside}/site.yaml "
                               f"--policy {inside}/policy.yaml'\nLAST_GOOD={inside}/vmjob\n")
    for kind in ("provider", "plugin"):
        bdii.put(f"gip/{kind}/vmjob", (GIP / kind / "vmjob").read_text(), 0o755)
    return bdii


@contextmanager
def running(bdii: Bdii) -> Iterator[float]:
    """As the package's unit starts them: with databases that are empty. Yields when that was (time.monotonic)."""
    inside = bdii.inside
    bdii.sh(f"rm -rf {inside}/old.ldif {inside}/db/*/*")
    started = time.monotonic()
    try:
        bdii.sh(f"slapd -f {inside}/slapd.conf -h ldap://0.0.0.0:{PORT}")
        bdii.sh(f"export VMJOB_GIP_CONF={inside}/vmjob-gip.conf SLAPD_CONF={inside}/slapd.conf; "
                f"bdii-update -c {inside}/bdii.conf -d")
        yield started
    finally:
        _stop(bdii)


def _stop(bdii: Bdii) -> None:
    """Also what a session that was killed has left."""
    for process in list(hosts.processes(bdii.host)):
        if process.user == USER and any(word.startswith(bdii.inside) for word in process.argv):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
