"""Site ads: what a site publishes of its virtual machines, and what one of its nodes says of itself. Typed and frozen;
no I/O here.

A ``NodeAd`` is printed by the startd hook on a node (wrappers/) and read back from the pool's collector. A ``SiteAd``
is made by the publisher (ceMon-publisher/) from those, the site's configuration, its policy and its lists, rendered
into GLUE, ClassAds, JSON and more, and read back by ``vmjob sites``. What both ends must agree on stands here and
nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmjob.core import codec

ANYBODY = "*"  # in place of a VO: all of them
KVM, TCG = "kvm", "tcg"


# ---------------------------------------------------------------- a site


@dataclass(frozen=True)
class SiteImage:
    """An image that jobs may run at a site. ``digest``: the manifest's, ``sha256:…``. ``identifier``, ``version``: of
    its entry in the list that endorses it, ``endorser`` the DN who signed ``list``; all empty for one that the site
    trusts by itself. ``vos``: whose jobs may. ``size``: bytes that travel; ``memory`` (bytes), ``cpus``: what a guest
    of it needs; ``expires``: seconds since 1970. 0 and empty: not known, or never. ``uri``: where it can be fetched."""

    name: str
    digest: str
    vos: tuple[str, ...] = (ANYBODY,)
    identifier: str = ""
    version: str = ""
    description: str = ""
    endorser: str = ""
    list: str = ""
    arch: str = "x86_64"
    os: str = ""
    os_version: str = ""
    size: int = 0
    memory: int = 0
    cpus: int = 0
    expires: int = 0
    uri: str = ""

    @property
    def tags(self) -> tuple[str, str]:
        """What people ask for by name, and programs by digest, where a site can publish words only (GLUE 1.3, CEMon,
        ARC): ``vm_star_sl5`` as WNoDeS has it, and ``vm_sha256_HEX``."""
        return tag_of_name(self.name), tag_of_digest(self.digest)


@dataclass(frozen=True)
class Element:
    """A compute element. ``url``: what ``vmjob submit --to`` takes. ``kind``: condor-ce or arc; ``batch``: the system
    behind it (condor, slurm, pbs, …). ``max_walltime``: seconds, 0: no limit. ``waiting``: jobs in its queue that do
    not run yet, 0: none, or not known."""

    host: str
    url: str
    kind: str = "condor-ce"
    batch: str = "condor"
    batch_version: str = ""
    queue: str = "default"
    max_walltime: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Nodes:
    """Worker nodes of one kind. ``accel``: kvm where test guests ran on it, else tcg, and ``reason`` why not kvm.
    ``total``: how many nodes, ``online``: of these, how many take VMs now. ``cpus``, ``memory``: of one node, bytes;
    ``max_memory``, ``max_cpus``: the most that one guest gets. ``free``, ``running``, ``occupied``: of all these nodes
    together, see NodeAd."""

    name: str
    accel: str = TCG
    reason: str = ""
    networks: tuple[str, ...] = ("nat",)
    total: int = 0
    online: int = 0
    cpus: int = 0
    memory: int = 0
    max_memory: int = 0
    max_cpus: int = 0
    free: int = 0
    running: int = 0
    occupied: int = 0
    arch: str = "x86_64"
    os: str = ""
    os_version: str = ""


@dataclass(frozen=True)
class SiteAd:
    """A site. ``vos``: whose jobs may run VMs there at all. ``unlisted``: VOs whose jobs may bring images that are not
    among ``images``. ``max_walltime``: of a guest, seconds, 0: no limit. ``version``: of vmjob there. ``created``,
    ``expires``: seconds since 1970; an ad that has expired is worth nothing. ``latitude``, ``longitude``: degrees."""

    name: str
    vos: tuple[str, ...] = ()
    elements: tuple[Element, ...] = ()
    nodes: tuple[Nodes, ...] = ()
    images: tuple[SiteImage, ...] = ()
    unlisted: tuple[str, ...] = ()
    max_walltime: int = 0
    version: str = ""
    created: int = 0
    expires: int = 0
    description: str = ""
    web: str = ""
    contact: str = ""
    country: str = ""
    latitude: float = 0.0
    longitude: float = 0.0

    @property
    def online(self) -> tuple[Nodes, ...]:
        """The nodes that take VMs now, those with KVM first."""
        return tuple(sorted((one for one in self.nodes if one.online), key=lambda one: one.accel != KVM))


def tag_of_name(name: str) -> str:
    """``vm_NAME``, of the characters that all who read it can take."""
    return "vm_" + re.sub(r"[^A-Za-z0-9._-]", "_", name)


def tag_of_digest(digest: str) -> str:
    """``vm_sha256_HEX``."""
    return "vm_" + digest.replace(":", "_")


def line(text: object, longest: int = 1000) -> str:
    """One printable line. Also no bidirectional marks, and no halves of characters, which have no UTF-8."""
    words = "".join(c if c.isprintable() else " " for c in str(text)[:longest * 4]).split()
    whole = " ".join(words)
    return whole if len(whole) <= longest else whole[:longest - 1].rstrip() + "…"


def covers(vos: tuple[str, ...], vo: str) -> bool:
    """Is ``vo`` among these?"""
    return ANYBODY in vos or vo in vos


# ---------------------------------------------------------------- as JSON (schemas/site-ad.schema.json)


def to_json(ad: SiteAd) -> dict[str, Any]:
    """The document that site-ad.schema.json describes."""
    return {"schema": 1, **codec.write(ad)}


def from_json(document: Mapping[str, Any]) -> SiteAd:
    """Back from a document that was checked against the schema (core.schema.check)."""
    return codec.read(SiteAd, document, "site ad")


# ---------------------------------------------------------------- a node


@dataclass(frozen=True)
class NodeAd:
    """What a node says of itself, in its machine ad. ``has``: it takes VMs now, else ``offline`` says why not.
    ``images``: digests that need not be fetched here any more. ``max_memory``: bytes, of one guest. ``running``: guests
    now; ``free``: how many more of the default size could start; ``occupied``: CPUs that are claimed, by guests and
    by other jobs. ``checked``: when a test guest last ran, seconds since 1970. ``cpus``, ``memory`` (bytes) of the
    whole node. ``arch``, ``os``, ``os_version``: of the node, ``ID`` and ``VERSION_ID`` of /etc/os-release; in a pool
    the machine ad has them already (Arch, OpSysName, OpSysMajorVer). ``failing``: users of the node whose VMs fail here
    though a test guest runs. ``expires``: seconds since 1970, from when on this says nothing any more; 0: not known."""

    machine: str
    has: bool
    accel: str = TCG
    reason: str = ""
    images: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    max_memory: int = 0
    max_cpus: int = 0
    version: str = ""
    free: int = 0
    running: int = 0
    occupied: int = 0
    offline: str = ""
    checked: int = 0
    cpus: int = 0
    memory: int = 0
    problems: tuple[str, ...] = ()
    arch: str = "x86_64"
    os: str = ""
    os_version: str = ""
    failing: tuple[str, ...] = ()
    expires: int = 0


# Attributes of a machine ad, and of a CE's (HasVM and VM_* are the vm universe's, and never set from here). Memory in
# MiB, as HTCondor's own; lists are words with commas, as VM_Networking_Types.
HAS = "HasVmjob"
ACCEL, REASON = "VmjobAccel", "VmjobAccelReason"
IMAGES, NETWORKS = "VmjobImages", "VmjobNetworks"
MAX_MEMORY, MAX_CPUS, MAX_WALLTIME = "VmjobMaxMemory", "VmjobMaxCpus", "VmjobMaxWallTime"
VERSION = "VmjobVersion"
FREE, RUNNING, OCCUPIED = "VmjobFree", "VmjobRunning", "VmjobOccupied"
OFFLINE, CHECKED, PROBLEMS = "VmjobOfflineReason", "VmjobChecked", "VmjobProblems"
FAILING, EXPIRES = "VmjobFailing", "VmjobExpires"
# of a site, not of a node
SITE, VOS, UNLISTED, DIGEST = "VmjobSite", "VmjobVOs", "VmjobUnlisted", "VmjobDigest"
