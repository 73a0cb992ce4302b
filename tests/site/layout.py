"""Who is where in the test site: hosts, addresses, users, folders. Facts only; nothing here does anything."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = REPOSITORY / "build" / "site"  # where the root file system is kept
# A checkout can have a second site, with a name, beside its own: VMJOB_SITE=glidein
SITE = ROOTS.with_name("-".join(filter(None, (ROOTS.name, os.environ.get("VMJOB_SITE")))))

# Sites of two checkouts run side by side: names and addresses come from the folder, unless the environment has them.
_FOLDER = int(hashlib.sha256(os.fsencode(REPOSITORY if SITE == ROOTS else SITE)).hexdigest()[:4], 16)
PREFIX = os.environ.get("VMJOB_SITE_PREFIX") or f"vmjob-{_FOLDER:04x}"  # of links, which have 15 characters at most
NET = os.environ.get("VMJOB_SITE_NET") or f"10.{192 + _FOLDER // 256 % 64}.{_FOLDER % 256}"  # a /24 of our own
GATEWAY = f"{NET}.1"  # the machine itself
BRIDGE = f"{PREFIX}-br"
NODE_CACHE = "/var/lib/vmjob/cache"  # on a node: outlives a job, shared by its jobs
EXECUTE = "/var/lib/condor/execute"  # on a node: holds the jobs' folders
DAEMON_USER = "condor"


@dataclass(frozen=True)
class Host:
    """One machine of the site: a network namespace, and a bubblewrap in it."""

    name: str
    number: int  # last part of the address
    domain: str  # of its users, and of the tokens that it trusts
    pool: str  # name of the host with its collector
    daemons: tuple[str, ...]  # what condor_master starts
    users: tuple[str, ...]
    homes: bool = True  # a pool account on a worker node has none

    @property
    def full_name(self) -> str:
        return f"{self.name}.vmjob.test"

    @property
    def address(self) -> str:
        return f"{NET}.{self.number}"

    @property
    def namespace(self) -> str:
        """Name of the network namespace, and of the machine's end of the link into it."""
        return f"{PREFIX}-{self.name}"

    @property
    def folder(self) -> Path:
        return SITE / self.name

    @property
    def log(self) -> Path:
        """Folder with the daemons' logs."""
        return self.folder / "log"

    @property
    def holds_key(self) -> bool:
        """The collector's host signs the tokens of its domain."""
        return self.pool == self.name


VO, CE, C2 = "vo.vmjob.test", "ce.vmjob.test", "c2.vmjob.test"
MANAGER = ("COLLECTOR", "NEGOTIATOR", "SCHEDD")
HOSTS = {host.name: host for host in (
    Host("vo", 10, VO, "vo", MANAGER, ("ada",)),
    Host("ce", 20, CE, "ce", MANAGER, ("alice", "bob")),
    Host("n1", 31, CE, "ce", ("STARTD",), ("alice", "bob"), homes=False),
    Host("n2", 32, CE, "ce", ("STARTD",), ("alice", "bob"), homes=False),
    # a second site, all of it one machine, that jobs can go to instead; a site with a name has no use for it
    *(() if os.environ.get("VMJOB_SITE") else (Host("c2", 40, C2, "c2", (*MANAGER, "STARTD"), ("alice", "bob")),)),
)}
NODES = [host for host in HOSTS.values() if host.pool == "ce" and "STARTD" in host.daemons]
PORTS = {name: 9618 if name == "vo" else 9619 for name, host in HOSTS.items() if host.holds_key}
COLLECTORS = {name: f"{HOSTS[name].address}:{port}" for name, port in PORTS.items()}

USERS = {"alice": 21001, "bob": 21002, "ada": 21003}  # user and group number
KVM_USERS = ("alice",)
IDENTITIES = {"alice": CE, "bob": CE, "ada": VO}
GLIDEIN = "glidein"  # as which worker nodes come to the VO's pool from elsewhere
# what a master and a startd behind NAT do at a collector; a token that allows no more is of no use to a thief's jobs
GLIDEIN_MAY = ("ADVERTISE_MASTER", "ADVERTISE_STARTD")
