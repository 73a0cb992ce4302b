"""GLUE 1.3 into site ads: tags of images (``vm_NAME``, as WNoDeS has them), compute elements, and whose jobs they take.

A subcluster's tags say what some VO's jobs can run there; where ours publishes, a VO's view says which images are its
own, and with which digest. What KVM, memory and networks there are is said of a compute element only, so the nodes of
a site are one kind here. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Optional

from vmjob.ads import site_ad
from vmjob.ads.site_ad import KVM, TCG, Element, Nodes, SiteAd, SiteImage
from vmjob.core.units import MIB
from vmjob.sites.glue import NAME, Entry, digest, digest_of, listed, number, rdns, tagged, vos

TAGS, SAYS = "GlueHostApplicationSoftwareRunTimeEnvironment", "GlueCECapability"
FOUND = (f"(|(&(objectClass=GlueSubCluster)({TAGS}=vm_*))"
         f"(&(objectClass=GlueCE)(|({SAYS}={site_ad.HAS})({SAYS}={site_ad.VERSION}=*))))")
PARTS = ("GlueCluster", "GlueSubCluster", "GlueCE", "GlueVOView")
_RULE = "GlueCEAccessControlBaseRule"
ATTRIBUTES = (
    "objectClass", "GlueForeignKey", "GlueChunkKey", TAGS, SAYS, _RULE, "GlueClusterUniqueID", "GlueClusterName",
    "GlueSubClusterName", "GlueSubClusterPhysicalCPUs", "GlueHostArchitectureSMPSize", "GlueHostMainMemoryRAMSize",
    "GlueHostArchitecturePlatformType", "GlueHostOperatingSystemName", "GlueHostOperatingSystemRelease",
    *(f"GlueCE{one}" for one in (
        "UniqueID", "Name", "ImplementationName", "HostingCluster", "InfoHostName", "InfoContactString", "InfoLRMSType",
        "InfoLRMSVersion", "PolicyMaxWallClockTime", "StateFreeJobSlots", "StateRunningJobs")))


def sites(entries: Sequence[Entry], notes: list[str]) -> list[SiteAd]:
    """The ads of all entries below one ``mds-vo-name=…``. Keys that lead to nothing, or in circles, lead no further
    than one step. Pure but for ``notes``."""
    clusters = {name.lower(): one for one in entries if one.has("GlueCluster")
                and (name := one.one("GlueClusterUniqueID"))}
    below: dict[str, list[Entry]] = {name: [] for name in clusters}
    of_ce: dict[str, str] = {}
    for one in entries:
        cluster = _cluster(one)
        if one.has("GlueCE") or one.has("GlueSubCluster"):
            below.setdefault(cluster, []).append(one)
            of_ce[one.one("GlueCEUniqueID").lower()] = cluster
    for one in entries:
        if one.has("GlueVOView") and (ce := _key(one, "GlueChunkKey", "GlueCEUniqueID")) in of_ce:
            below[of_ce[ce]].append(one)
    named: dict[str, list[Entry]] = {}
    for cluster, parts in below.items():
        if _runs_vms(parts):
            owner = clusters.get(cluster)
            named.setdefault(_site(owner, parts[0]), []).extend(parts)
    if "" in named:
        notes.append(f"left out: a cluster without a site's name ({named.pop('')[0].dn[:80]})")
    return [_ad(name, parts) for name, parts in named.items()]


def _key(one: Entry, attribute: str, kind: str) -> str:
    """What a foreign or chunk key names, in lower case; empty where it names none of this kind."""
    values = (value.partition("=") for value in one.all(attribute))
    return next((value.strip().lower() for key, _, value in values if key.strip().lower() == kind.lower()), "")


def _cluster(one: Entry) -> str:
    if one.has("GlueCE"):
        return _key(one, "GlueForeignKey", "GlueClusterUniqueID") or one.one("GlueCEHostingCluster").lower()
    return _key(one, "GlueChunkKey", "GlueClusterUniqueID")


def _runs_vms(parts: Sequence[Entry]) -> bool:
    return any(tagged(tag) for one in parts for tag in one.all(TAGS)) or \
        any(site_ad.HAS in one.all(SAYS) or site_ad.VERSION in one.words(SAYS) for one in parts)


def _site(owner: Optional[Entry], part: Entry) -> str:
    """Its name: what the cluster's key says, else the last word of the tree that is not a level's."""
    for value in owner.all("GlueForeignKey") if owner else ():
        key, _, name = value.partition("=")
        if key.strip().lower() == "gluesiteuniqueid" and 0 < len(name.strip()) <= NAME:
            return name.strip()
    names = [value for key, value in rdns(part.dn) if key == "mds-vo-name" and value.lower() not in
             ("resource", "local", "grid")]
    return names[0][:NAME] if names else (owner.one("GlueClusterName", NAME) if owner else "")


def _ad(name: str, parts: Sequence[Entry]) -> SiteAd:
    elements = [one for one in parts if one.has("GlueCE")]
    views = [one for one in parts if one.has("GlueVOView")]
    words: dict[str, str] = {}
    for one in elements:
        words = {**one.words(SAYS), **words}
    served = vos(rule for one in elements for rule in one.all(_RULE))
    unique = {one.host + one.queue: one for one in map(_element, elements) if one.host and one.url}
    return SiteAd(
        name, served, tuple(unique.values())[:1000], _nodes(parts, elements, words),
        _images(parts, views), listed(words.get(site_ad.UNLISTED, "")),
        max((one.max_walltime for one in unique.values()), default=0), words.get(site_ad.VERSION, "")[:1000])


def _element(one: Entry) -> Element:
    unique, host = one.one("GlueCEUniqueID", NAME), one.one("GlueCEInfoHostName", NAME)
    contact = one.one("GlueCEInfoContactString", NAME)
    kind = one.one("GlueCEImplementationName").lower()
    return Element(host or unique.partition(":")[0], contact or unique, kind or "unknown",
                   one.one("GlueCEInfoLRMSType") or "unknown", one.one("GlueCEInfoLRMSVersion"),
                   one.one("GlueCEName") or "default", _known(one.number("GlueCEPolicyMaxWallClockTime")) * 60)


def _known(value: int) -> int:
    """444444, and nines only, have been the customs for "nobody knows"."""
    return 0 if re.fullmatch(r"4{6,}|9{6,}", str(value)) else value


def _nodes(parts: Sequence[Entry], elements: Sequence[Entry], words: dict[str, str]) -> tuple[Nodes, ...]:
    kinds = [one for one in parts if one.has("GlueSubCluster")]
    if not kinds:
        return ()
    best, total = kinds[0], sum(_known(one.number("GlueSubClusterPhysicalCPUs")) for one in kinds)
    ours = site_ad.VERSION in words or any(site_ad.HAS in one.all(SAYS) for one in elements)
    open_ = any(site_ad.HAS in one.all(SAYS) for one in elements) if ours else True
    total = total if ours else max(total, 1)
    most = elements[0] if elements else Entry("", {})
    says = site_ad.ACCEL in words
    return (Nodes(
        best.one("GlueSubClusterName", NAME) if len(kinds) == 1 and best.one("GlueSubClusterName") else "nodes",
        KVM if words.get(site_ad.ACCEL) == KVM else TCG, "" if says else "it does not say whether it has KVM",
        listed(words.get(site_ad.NETWORKS, ""))[:10], total, total if open_ else 0,
        _known(best.number("GlueHostArchitectureSMPSize")), best.number("GlueHostMainMemoryRAMSize") * MIB,
        number(words.get(site_ad.MAX_MEMORY, "")) * MIB, number(words.get(site_ad.MAX_CPUS, "")),
        _known(most.number("GlueCEStateFreeJobSlots")) if ours else 0,
        _known(most.number("GlueCEStateRunningJobs")) if ours else 0, 0,
        best.one("GlueHostArchitecturePlatformType") or "x86_64", best.one("GlueHostOperatingSystemName"),
        best.one("GlueHostOperatingSystemRelease")),)


def _images(parts: Sequence[Entry], views: Sequence[Entry]) -> tuple[SiteImage, ...]:
    """By name and digest; of a site that has no views with digests, names and digests are apart."""
    mine: dict[tuple[str, str], list[str]] = {}
    for view in views:
        for tag, text in view.words(SAYS).items():
            if tagged(tag) and digest(text):
                mine.setdefault((tagged(tag), text), []).extend(vos(view.all(_RULE)))
    names, digests = {name for name, _ in mine}, {one for _, one in mine}
    tags = dict.fromkeys(tag for one in parts for tag in (*one.all(TAGS), *one.all(SAYS)))
    for tag in tags:
        if (name := tagged(tag.partition("=")[0])) and name not in names:
            mine.setdefault((name, ""), [site_ad.ANYBODY])
        if (found := digest_of(tag)) and found not in digests:
            mine.setdefault((tag[3:22], found), [site_ad.ANYBODY])
    return tuple(SiteImage(name, one, tuple(dict.fromkeys(who))) for (name, one), who in mine.items())
