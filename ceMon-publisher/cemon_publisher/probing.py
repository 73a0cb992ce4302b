"""Where the publisher learns of the worker nodes: a pool's collector, this machine, or files."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vmjob.ads import node_ad, node_kinds
from vmjob.ads.site_ad import IMAGES, KVM, NodeAd, Nodes
from vmjob.ads.site_yaml import Site
from vmjob.core.errors import VmjobError
from vmjob.core.pool_errors import PoolUnreachable
from vmjob.core.site_errors import SiteBroken, SitesUnreachable

PATIENCE = 10  # seconds that a collector has to answer
CHECKED = 2 * 86400  # seconds for which a test guest that ran proves something, where the node does not say how long
_KVM = Path("/dev/kvm")
_LARGEST = 2**20  # characters of one node's file
Note = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What one node said. ``trouble``: why it does not count as online though it may say so."""

    ad: NodeAd
    trouble: str = ""


def kinds(seen: Sequence[Seen]) -> tuple[Nodes, ...]:
    """The nodes of the site by kind."""
    on = [one.ad for one in seen if one.ad.has and not one.trouble]
    return node_kinds.kinds(on, [one.ad for one in seen if not one.ad.has or one.trouble])


def probe(site: Site, now: float, note: Note) -> list[Seen]:
    """What the nodes say; what is wrong with those that make no sense goes to ``note``. ``now``: seconds since 1970.

    Raises SiteBroken where the configuration names no source, and the source's own error (PoolUnreachable,
    SitesUnreachable, …) where it tells nothing at all: that is never "no nodes"."""
    source = site.nodes
    if source is None:
        raise SiteBroken(f"{site.file}: nodes: the key is missing",
                         "say where the nodes tell of themselves: nodes: {collector: HOST}, {here: true} or "
                         "{files: /PATH/*.json}")
    if source.collector:
        found = [Seen(ad) for ad in _pool(site, source.collector, note)]
    elif source.files:
        found = list(_files(site, Path(source.files), now, note))
    else:
        found = [Seen(_here())]
        if found[0].ad.accel != KVM and _KVM.exists() and not os.access(_KVM, os.R_OK | os.W_OK):
            note(f"nodes: here: who runs this (user {os.geteuid()}) may not open {_KVM}, so the nodes are published as "
                 "without KVM; let those say who run the jobs: nodes: {collector: …} or {files: …}")
    seen = [_judged(one, now) for one in found]
    for one in seen:
        if one.trouble:
            note(f"{one.ad.machine} does not count as online: {one.trouble}")
    return seen


def _judged(one: Seen, now: float) -> Seen:
    """With the trouble of a node that says it takes VMs, and has not proved it lately."""
    until = one.ad.expires or (one.ad.checked + CHECKED if one.ad.checked else 0)
    if not one.ad.has or one.trouble or not until or now < until:
        return one
    return Seen(one.ad, f"what it says counted until {(now - until) / 3600:.1f} hours ago")


def _pool(site: Site, address: str, note: Note) -> tuple[NodeAd, ...]:
    from vmjob.batch.pool import Pool
    from vmjob.batch.targets import Place

    collector = Pool(Place(address)).collector
    import htcondor2  # Pool says what to do where it is missing

    for key in ("QUERY_TIMEOUT", "SEC_TCP_SESSION_TIMEOUT"):
        htcondor2.param[key] = str(PATIENCE)
    try:
        ads = collector.query(htcondor2.AdType.Startd, constraint=f"{node_ad.ADVERTISED} && DynamicSlot =!= true",
                              projection=[name for name in node_ad.PROJECTION if name != IMAGES])
    except htcondor2.HTCondorException as complaint:  # why, only a ping would tell, which has no end
        raise PoolUnreachable(f"{address}: the collector does not answer: {complaint}",
                              f"check nodes.collector in {site.file}, and that this machine may read it (ALLOW_READ)"
                              ) from complaint
    nodes = node_ad.nodes_of(ads)
    for machine in sorted({str(ad.get("Machine")) for ad in ads} - {one.machine for one in nodes}):
        note(f"{machine}: its machine ad makes no sense, and does not count")
    if not nodes:
        raise SitesUnreachable(f"{address}: no machine of this pool says whether it takes VMs",
                               "install the startd's hook (wrappers/vmjob-startd.sh); a collector that has just "
                               "started knows its machines after a few minutes")
    return nodes


def _files(site: Site, pattern: Path, now: float, note: Note) -> Iterator[Seen]:
    """Each node once, by the file that was written last."""
    seen: dict[str, tuple[float, Seen]] = {}
    broken = []
    for path in _paths(site, pattern):
        try:
            text, written = _read(path)
            ad, age = node_ad.from_json(json.loads(text), str(path)), now - written
        except (OSError, ValueError, RecursionError, VmjobError) as wrong:
            broken.append(wrong.message if isinstance(wrong, VmjobError) else
                          f"{path}: {getattr(wrong, 'strerror', None) or wrong}")
            note(f"a node's file does not count: {broken[-1]}")
            continue
        # without a time of its own: as old as its file
        old = not ad.expires and age > 2 * site.validity
        one = Seen(ad, f"{path} was written {age / 3600:.1f} hours ago" if old and ad.has else "")
        if ad.machine not in seen or age < seen[ad.machine][0]:
            seen[ad.machine] = age, one
    if not seen:
        raise SitesUnreachable(f"{pattern}: no file tells of a node" + (f": {broken[0]}" if broken else ""),
                               "nodes write them: vmjob site advertise --json")
    return (one for _, one in seen.values())


def _read(path: Path) -> tuple[str, float]:
    """A node's file, and when it was written (seconds since 1970). Raises OSError, ValueError."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would wait
    with os.fdopen(opened, encoding="utf-8") as file:
        about = os.fstat(opened)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("this is no file")
        return file.read(_LARGEST), about.st_mtime


def _paths(site: Site, pattern: Path) -> Iterator[Path]:
    if "*" in str(pattern.parent) or "?" in str(pattern.parent):
        raise SiteBroken(f"{site.file}: nodes.files: * and ? only in the last part", "put the files into one folder")
    try:
        names = sorted(entry.name for entry in pattern.parent.iterdir())
    except OSError as unreadable:
        raise SitesUnreachable(f"{pattern.parent}: {unreadable.strerror}",
                               f"nodes.files in {site.file} names it") from unreadable
    for name in names:
        if fnmatchcase(name, pattern.name) and not name.startswith("."):  # one that is being written
            yield pattern.parent / name


def _here() -> NodeAd:
    from vmjob.node import advertise

    return advertise.named(advertise.answer().ad)
