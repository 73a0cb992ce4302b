"""GLUE 1.3 for a resource BDII, below ``mds-vo-name=resource,o=grid``, which the BDII itself has::

    SiteAd     GlueCluster     GlueClusterUniqueID NAME-vmjob: CEs have clusters of their own; GlueForeignKey
                               GlueSiteUniqueID=NAME
    Nodes      GlueSubCluster  GlueSubClusterName name; GlueHost… arch, os, os_version; of what a guest gets, as
                               jobs ask for that: SMPSize max_cpus, RAMSize max_memory (MiB);
                               GlueHostApplicationSoftwareRunTimeEnvironment: for every image that can run there now
                               its tags vm_NAME and vm_sha256_HEX (vmjob.ads.site_ad)
    Element    GlueCE          GlueCEUniqueID HOST:PORT/KIND-BATCH-QUEUE; GlueCEInfoContactString url;
                               GlueCEInfoHostName; GlueCEInfoLRMSType batch; GlueCEInfoLRMSVersion; GlueCEName queue;
                               GlueCEPolicyMaxWallClockTime (minutes); GlueCECapability KEY=VALUE: VmjobVersion,
                               VmjobAccel, VmjobNetworks, VmjobMaxMemory (MiB), VmjobMaxCpus, VmjobUnlisted
    vos        GlueVOView      below each GlueCE: GlueCEAccessControlBaseRule VO:x, or ALL; GlueCECapability: of every
                               image that this VO may run vm_NAME, and vm_NAME=sha256:HEX

A subcluster has no word for whose an image is: its tags say what *some* VO's jobs can run there. The VO's view says
what its own can: ``Member("vm_star_sl5", other.GlueCECapability)``. ``HasVmjob`` stands for "takes virtual machines
now" in GlueCECapability of the CE. All is ASCII, as the schema wants it; numbers that nobody knows are 444444, as
has been the custom.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from cemon_publisher import check, fits
from cemon_publisher.ldif import Entry, Values, clean, distinct, entry, identifier, short, text, words
from vmjob.ads import site_ad
from vmjob.ads.site_ad import Element, Nodes, SiteAd, covers

BASE = "mds-vo-name=resource,o=grid"
TAGS = "GlueHostApplicationSoftwareRunTimeEnvironment"
NOBODY_KNOWS = 444444
_PORTS = {"condor-ce": 9619, "arc": 443}
_MIB = 2**20
_make = partial(entry, ia5=True)
_KEYED: tuple[str, ...] = ("GlueKey", "GlueSchemaVersion")
_VERSION: dict[str, Values] = {"GlueSchemaVersionMajor": 1, "GlueSchemaVersionMinor": 3}


def render(ad: SiteAd) -> str:
    """The LDIF. Raises VmjobError where it contradicts itself (a bug): then nothing is published."""
    return text(check.glue1(list(entries(ad))))


def entries(ad: SiteAd) -> Iterator[Entry]:
    """Parents before children."""
    cluster = identifier(f"{ad.name}-vmjob")
    top = f"GlueClusterUniqueID={cluster},{BASE}"
    elements = dict(zip(distinct(map(_ce_id, ad.elements)), ad.elements))
    site = f"GlueSiteUniqueID={clean(ad.name)}"
    yield _make("GlueClusterUniqueID", cluster, BASE, ("GlueClusterTop", "GlueCluster", "GlueInformationService",
                                                       *_KEYED), {
        "GlueClusterName": f"{ad.name} virtual machines",
        "GlueForeignKey": [site, *(f"GlueCEUniqueID={name}" for name in elements)], **_VERSION})
    for name, nodes in zip(distinct(short(f"{cluster}-{identifier(one.name)}") for one in ad.nodes), ad.nodes):
        yield _make("GlueSubClusterUniqueID", name, top, (
            "GlueClusterTop", "GlueSubCluster", "GlueHostApplicationSoftware", "GlueHostArchitecture",
            "GlueHostMainMemory", "GlueHostNetworkAdapter", "GlueHostOperatingSystem", *_KEYED), {
            **_nodes(nodes), TAGS: tags(ad, nodes), "GlueChunkKey": f"GlueClusterUniqueID={cluster}", **_VERSION})
    for name, element in elements.items():
        yield _make("GlueCEUniqueID", name, BASE, (
            "GlueCETop", "GlueCE", "GlueCEInfo", "GlueCEState", "GlueCEPolicy", "GlueCEAccessControlBase",
            "GlueInformationService", *_KEYED), {
            "GlueCEHostingCluster": cluster, "GlueForeignKey": f"GlueClusterUniqueID={cluster}",
            **_element(ad, element), **_state(ad, element), **_VERSION})
        for vo in fits.vos(ad):
            yield _make("GlueVOViewLocalID", identifier(vo), f"GlueCEUniqueID={name},{BASE}", (
                "GlueCETop", "GlueVOView", "GlueCEInfo", "GlueCEState", "GlueCEPolicy", "GlueCEAccessControlBase",
                *_KEYED), {
                "GlueCEAccessControlBaseRule": _rule(vo), "GlueCECapability": _of_vo(ad, vo),
                "GlueChunkKey": f"GlueCEUniqueID={name}", **_state(ad, element), **_VERSION})


def tags(ad: SiteAd, nodes: Nodes) -> list[str]:
    """Of the images that can run on these nodes."""
    return [tag for image in ad.images if fits.runs(image, nodes) for tag in image.tags]


def _of_vo(ad: SiteAd, vo: str) -> list[str]:
    return [word for image in fits.running(ad) if covers(image.vos, vo)
            for word in (image.tags[0], f"{image.tags[0]}={image.digest}")]


def _host(host: str) -> str:
    """Case means nothing in it, and ``dn:`` must not come about."""
    return f"{host[:-1]}N" if host.endswith("dn") else host


def _port(one: Element) -> int:
    try:
        return urlsplit(one.url).port or _PORTS[one.kind]
    except ValueError:
        return _PORTS[one.kind]


def _ce_id(one: Element) -> str:
    return short(f"{identifier(_host(one.host))}:{_port(one)}/{identifier(f'{one.kind}-{one.batch}-{one.queue}')}")


def _rule(vo: str) -> str:
    return "ALL" if vo == site_ad.ANYBODY else f"VO:{vo}"


def _nodes(one: Nodes) -> dict[str, Values]:
    return {
        "GlueSubClusterName": one.name, "GlueSubClusterPhysicalCPUs": one.total,
        "GlueSubClusterLogicalCPUs": one.total * one.cpus,
        "GlueHostArchitecturePlatformType": one.arch,
        "GlueHostArchitectureSMPSize": one.max_cpus or one.cpus or None,
        "GlueHostMainMemoryRAMSize": (one.max_memory or one.memory) // _MIB or None,
        "GlueHostOperatingSystemName": one.os, "GlueHostOperatingSystemRelease": one.os_version,
        "GlueHostNetworkAdapterInboundIP": "FALSE",
        "GlueHostNetworkAdapterOutboundIP": "TRUE" if "nat" in one.networks else "FALSE"}


def _element(ad: SiteAd, one: Element) -> dict[str, Values]:
    best = ad.online[0] if ad.online else None
    own = {site_ad.VERSION: ad.version, site_ad.UNLISTED: words(ad.unlisted)}
    if best:
        own |= {site_ad.ACCEL: best.accel, site_ad.NETWORKS: words(best.networks),
                site_ad.MAX_MEMORY: str(best.max_memory // _MIB), site_ad.MAX_CPUS: str(best.max_cpus)}
    return {
        "GlueCEName": one.queue, "GlueCEImplementationName": one.kind, "GlueCEInfoHostName": _host(one.host),
        "GlueCEInfoGatekeeperPort": str(_port(one)), "GlueCEInfoContactString": one.url,
        "GlueCEInfoJobManager": one.batch, "GlueCEInfoLRMSType": one.batch, "GlueCEInfoLRMSVersion": one.batch_version,
        "GlueCEInfoTotalCPUs": sum(kind.total * kind.cpus for kind in ad.nodes),
        "GlueCECapability": [*((site_ad.HAS,) if best else ()),
                             *(f"{key}={value}" for key, value in own.items() if value not in ("", "0"))],
        "GlueCEAccessControlBaseRule": [_rule(vo) for vo in ad.vos] or ["NONE"]}


def _state(ad: SiteAd, one: Element) -> dict[str, Values]:
    free, running = sum(kind.free for kind in ad.nodes), sum(kind.running for kind in ad.nodes)
    minutes, wait = fits.walltime(ad, one) // 60 or NOBODY_KNOWS, 0 if free and not one.waiting else NOBODY_KNOWS
    return {
        "GlueCEStateStatus": "Production" if ad.online else "Closed", "GlueCEStateRunningJobs": running,
        "GlueCEStateWaitingJobs": one.waiting, "GlueCEStateTotalJobs": running + one.waiting,
        "GlueCEStateFreeJobSlots": free,
        "GlueCEStateFreeCPUs": max(sum(kind.total * kind.cpus - kind.occupied for kind in ad.nodes), 0),
        "GlueCEStateEstimatedResponseTime": wait, "GlueCEStateWorstResponseTime": NOBODY_KNOWS,
        "GlueCEPolicyMaxWallClockTime": minutes, "GlueCEPolicyMaxCPUTime": NOBODY_KNOWS}
