"""HTCondor's collectors asked: a pool's for what its nodes say, a compute element's for what its schedd says of a site.

Attribute names are those of sitead.py, and ``VmjobCatalog``, ``VmjobNodes``, ``VmjobElements``: lists of ads with what
GLUE and lists of words have no room for (``vmjob-publish classad``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from vmjob import nodead, sitead
from vmjob.nodekinds import kinds
from vmjob.site_errors import SitesUnreachable
from vmjob.sitead import ANYBODY, KVM, TCG, Element, NodeAd, Nodes, SiteAd, SiteImage, line
from vmjob.sites.asking import Answer
from vmjob.sites.glue import NAME, digest, digest_of, listed, tagged
from vmjob.sites.sources import Source
from vmjob.units import MIB

CREATED, EXPIRES = "VmjobCreated", "VmjobExpires"
CATALOG, NODES, ELEMENTS = "VmjobCatalog", "VmjobNodes", "VmjobElements"
PROJECTION = (
    sitead.HAS, sitead.SITE, sitead.VERSION, CREATED, EXPIRES, sitead.ACCEL, sitead.REASON, sitead.NETWORKS,
    sitead.MAX_MEMORY, sitead.MAX_CPUS, sitead.MAX_WALLTIME, sitead.VOS, sitead.UNLISTED, sitead.FREE, sitead.RUNNING,
    sitead.OCCUPIED, sitead.IMAGES, CATALOG, NODES, ELEMENTS, "Name", "Machine", "TotalIdleJobs")
_QUERIES: Mapping[str, tuple[str, Sequence[str]]] = {
    "condor": (nodead.ADVERTISED, nodead.PROJECTION), "condor-ce": (f"{sitead.SITE} =!= undefined", PROJECTION)}
_MOST, _LARGEST, _IMAGES = 1000, 2**53, 20000
Ad = Mapping[str, Any]


def ask(source: Source) -> Answer:
    """Raises SitesUnreachable, JobError, VmjobError without HTCondor's bindings."""
    from vmjob.batch.pool import Pool, translated
    from vmjob.batch.targets import Place
    from vmjob.pool_errors import PoolError

    pool = Pool(Place(f"[{source.host}]:{source.port}" if ":" in source.host else f"{source.host}:{source.port}"))
    try:
        collector = pool.collector
        import htcondor2

        # our parent ends us before: one that is slow would be taken for one that refuses us
        htcondor2.param["QUERY_TIMEOUT"] = str(source.timeout + 60)
        with translated(pool.place):
            kind = htcondor2.AdType.Startd if source.kind == "condor" else htcondor2.AdType.Schedd
            query, wanted = _QUERIES[source.kind]
            found = collector.query(kind, constraint=query, projection=list(wanted))
            others = [] if found else collector.query(kind, projection=["Machine"])
    except PoolError as trouble:
        raise SitesUnreachable(f"{source}: {trouble.message}", trouble.hint) from trouble
    machines = len({str(ad.get("Machine")) for ad in others})
    if source.kind == "condor":
        nodes = nodead.nodes_of(found)
        ads = [pool_ad(source, nodes)] if nodes else []
        none = f"none of its {machines} machines says {sitead.HAS}: the startd's hook is not there (docs/site-admin.md)"
    else:
        ads = [made for ad in found if (made := site_ad(plain(ad), source))]
        none = f"none of its {machines} schedds says {sitead.SITE}: the site does not publish there"
    return Answer(tuple(ads), () if ads else (none if machines else "it has no machines" if source.kind == "condor"
                                              else "it has no schedd",))


def plain(value: Any) -> Any:
    """A ClassAd as dictionaries, lists and plain values: expressions worked out, and what comes to nothing as None."""
    import classad2

    if isinstance(value, classad2.ClassAd):
        return {key: plain(nodead.value(value, key)) for key in value}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, classad2.ExprTree):
        return plain(value.eval())
    return value if isinstance(value, (bool, int, float, str)) else None


# ---------------------------------------------------------------- a compute element


def site_ad(ad: Ad, source: Source) -> Optional[SiteAd]:
    """From a schedd's ad (plain); None where it names no site. Pure."""
    name = _text(ad, sitead.SITE)[:NAME]
    if not name:
        return None
    host = _text(ad, "Machine")[:NAME] or source.host
    elements = tuple(one for each in _ads(ad, ELEMENTS) if (one := _element(each))) or (
        Element(host, source.url, queue=""),)
    # of its own queue a schedd speaks by itself
    waiting = _number(ad, "TotalIdleJobs")
    elements = tuple(replace(one, waiting=waiting) if one.host == host else one for one in elements)
    has = ad.get(sitead.HAS) is not False
    nodes = tuple(_nodes(one) for one in _ads(ad, NODES)) if ad.get(NODES) else (_all_nodes(ad, has),)
    if not has:  # expired, or taken back by the admin
        nodes = tuple(replace(one, online=0) for one in nodes)
    return SiteAd(
        name, _words(ad, sitead.VOS), elements, nodes, _images(ad),
        _words(ad, sitead.UNLISTED), _number(ad, sitead.MAX_WALLTIME), _text(ad, sitead.VERSION), _number(ad, CREATED),
        _number(ad, EXPIRES))


def _element(ad: Ad) -> Optional[Element]:
    host, url = _text(ad, "Host")[:NAME], _text(ad, "Url")[:NAME]
    if not host or not url:
        return None
    return Element(host, url, _text(ad, "Kind") or "unknown", _text(ad, "Batch"), _text(ad, "BatchVersion"),
                   _text(ad, "Queue"), _number(ad, "MaxWallTime"), _number(ad, "Waiting"))


def _nodes(ad: Ad) -> Nodes:
    return Nodes(
        _text(ad, "Name")[:NAME] or "nodes", KVM if ad.get("Accel") == KVM else TCG, _text(ad, "Reason"),
        _list(ad, "Networks")[:10], _number(ad, "Total"), _number(ad, "Online"), _number(ad, "CPUs"),
        _number(ad, "Memory") * MIB, _number(ad, "MaxMemory") * MIB, _number(ad, "MaxCPUs"), _number(ad, "Free"),
        _number(ad, "Running"), _number(ad, "Occupied"), _text(ad, "Arch") or "x86_64", _text(ad, "OS"),
        _text(ad, "OSVersion"))


def _all_nodes(ad: Ad, has: bool) -> Nodes:
    """Of an ad that says only what all nodes have together."""
    return Nodes(
        "nodes", KVM if ad.get(sitead.ACCEL) == KVM else TCG, _text(ad, sitead.REASON),
        _words(ad, sitead.NETWORKS)[:10], 1, int(has), max_memory=_number(ad, sitead.MAX_MEMORY) * MIB,
        max_cpus=_number(ad, sitead.MAX_CPUS), free=_number(ad, sitead.FREE), running=_number(ad, sitead.RUNNING),
        occupied=_number(ad, sitead.OCCUPIED))


def _images(ad: Ad) -> tuple[SiteImage, ...]:
    if ad.get(CATALOG):
        return tuple(_image(one) for one in _ads(ad, CATALOG) if _text(one, "Name") and digest(_text(one, "Digest")))
    tags = ad.get(sitead.IMAGES)
    return tagged_images(listed(tags, _IMAGES)) if isinstance(tags, str) else ()


def tagged_images(tags: Sequence[str]) -> tuple[SiteImage, ...]:
    """Of a list of words with a name's tag, and behind it the digest's. Pure."""
    return tuple(SiteImage(tagged(tag), digest_of(after)) for tag, after in zip(tags, (*tags[1:], ""))
                 if tagged(tag) and tag.isprintable())


def _image(ad: Ad) -> SiteImage:
    return SiteImage(
        _text(ad, "Name")[:NAME], _text(ad, "Digest"), _list(ad, "AllowedVOs") or (ANYBODY,),
        _text(ad, "Identifier"), _text(ad, "Version"), _text(ad, "Description"), _text(ad, "Endorser"),
        _text(ad, "List"), _text(ad, "Arch") or "x86_64", _text(ad, "OS"), _text(ad, "OSVersion"), _number(ad, "Size"),
        _number(ad, "Memory") * MIB, _number(ad, "CPUs"), _number(ad, "Expires"), _text(ad, "Uri"))


def _ads(ad: Ad, key: str) -> list[Ad]:
    found = ad.get(key)
    return list(filter(_is_ad, found[:_IMAGES])) if isinstance(found, list) else []


def _is_ad(value: Any) -> bool:
    return isinstance(value, dict)


def _text(ad: Ad, key: str) -> str:
    found = ad.get(key)
    return line(found, _MOST) if isinstance(found, str) else ""


def _words(ad: Ad, key: str) -> tuple[str, ...]:
    return listed(_text(ad, key))


def _list(ad: Ad, key: str) -> tuple[str, ...]:
    found = ad.get(key)
    return tuple(str(one)[:NAME] for one in found if isinstance(one, str) and one.isprintable())[:_MOST] \
        if isinstance(found, list) else ()


def _number(ad: Ad, key: str) -> int:
    found = ad.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or found != found:
        return 0
    return int(min(max(found, 0), _LARGEST))


# ---------------------------------------------------------------- a pool


def pool_ad(source: Source, nodes: Sequence[NodeAd]) -> SiteAd:
    """A pool as a site: it bears its collector's name, and says nothing of VOs; what its nodes' policy lets run is not
    known either. Images are those that some node holds. Pure."""
    held = dict.fromkeys(one for node in nodes if node.has for one in node.images)
    return SiteAd(
        source.host, (), (Element(source.host, source.url, "condor", queue=""),),
        kinds([one for one in nodes if one.has], [one for one in nodes if not one.has]),
        tuple(SiteImage(one[:19], one) for one in held)[:_IMAGES], (ANYBODY,),
        version=next((node.version for node in nodes if node.has), nodes[0].version))
