"""GLUE 2.0 (GFD.147, LDAP rendering GFD.218) into site ads: ours whole, and of other publishers what they say.

``Key=value`` in GLUE2EntityOtherInfo says what GLUE has no word for: the keys of ads.site_ad, or ``Vmjob`` and a field.
Others are known by the capability, their images by tags (WNoDeS), their VOs by mapping policies. No I/O.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Sequence
from typing import Optional

from vmjob.ads import site_ad
from vmjob.ads.site_ad import KVM, TCG, Element, Nodes, SiteAd, SiteImage
from vmjob.core.units import MIB
from vmjob.sites.glue import NAME, Entry, digest, listed, number, rdns, tagged, vos

CAN_RUN_VMS = "executionmanagement.dynamicvmdeploy"
INFO = "GLUE2EntityOtherInfo"
SERVICES = f"(&(objectClass=GLUE2Service)(|(GLUE2ServiceCapability={CAN_RUN_VMS})({INFO}={site_ad.SITE}=*)))"
PARTS = ("GLUE2ExecutionEnvironment", "GLUE2ApplicationEnvironment", "GLUE2Endpoint", "GLUE2ComputingShare",
         "GLUE2MappingPolicy", "GLUE2Location", "GLUE2Contact")
ATTRIBUTES = (
    "objectClass", "GLUE2EntityName", INFO, "GLUE2EntityCreationTime", "GLUE2EntityValidity", "GLUE2ServiceID",
    "GLUE2ServiceAdminDomainForeignKey", "GLUE2EndpointURL", "GLUE2EndpointInterfaceName", "GLUE2ResourceID",
    *(f"GLUE2ExecutionEnvironment{one}" for one in (
        "TotalInstances", "UnavailableInstances", "LogicalCPUs", "MainMemorySize", "ConnectivityOut", "Platform",
        "OSName", "OSVersion")),
    *(f"GLUE2ApplicationEnvironment{one}" for one in ("AppName", "AppVersion", "Description", "Repository",
                                                      "RemovalDate")),
    "GLUE2ComputingShareMaxWallTime", "GLUE2PolicyRule", "GLUE2LocationCountry", "GLUE2LocationLatitude",
    "GLUE2LocationLongitude", "GLUE2ContactDetail")
_KINDS = {"org.opensciencegrid.htcondorce": "condor-ce", "org.nordugrid.arcrest": "arc"}
_PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}


def site(service: Entry, parts: Sequence[Entry], notes: list[str]) -> Optional[SiteAd]:
    """The ad of a service and the entries below it; None where it has no name. Pure but for ``notes``."""
    info = service.words(INFO)
    name = (info.get(site_ad.SITE) or service.one("GLUE2ServiceAdminDomainForeignKey") or _domain(service.dn)
            or service.one("GLUE2ServiceID"))
    if not name or len(name) > NAME:
        notes.append(f"left out: a service without a site's name ({service.dn[:80]})")
        return None
    images = [image for part in parts if part.has("GLUE2ApplicationEnvironment") and (image := _image(part))]
    rules = [rule for part in parts if part.has("GLUE2MappingPolicy") for rule in part.all("GLUE2PolicyRule")]
    shares = [part.number("GLUE2ComputingShareMaxWallTime") for part in parts if part.has("GLUE2ComputingShare")]
    place = next((part for part in parts if part.has("GLUE2Location")), Entry("", {}))
    contact = next((part for part in parts if part.has("GLUE2Contact")), Entry("", {}))
    created = _moment(service.one("GLUE2EntityCreationTime"))
    valid = service.number("GLUE2EntityValidity")
    return SiteAd(
        name, listed(info[site_ad.VOS]) if site_ad.VOS in info else vos(rules),
        tuple(one for part in parts if part.has("GLUE2Endpoint") and (one := _element(part)))[:1000],
        tuple(_nodes(part) for part in parts if part.has("GLUE2ExecutionEnvironment"))[:1000], tuple(images),
        listed(info.get(site_ad.UNLISTED, "")),
        number(info[site_ad.MAX_WALLTIME]) if site_ad.MAX_WALLTIME in info else 0 if _ours(info) else
        max(shares, default=0),
        info.get(site_ad.VERSION, "")[:1000], created, created + valid if created and valid else 0,
        info.get("VmjobDescription", ""), info.get("VmjobWeb", "")[:1000], contact.one("GLUE2ContactDetail"),
        place.one("GLUE2LocationCountry"), _degrees(place.one("GLUE2LocationLatitude"), 90),
        _degrees(place.one("GLUE2LocationLongitude"), 180))


def _ours(info: dict[str, str]) -> bool:
    return site_ad.SITE in info


def _domain(dn: str) -> str:
    return next((value for key, value in rdns(dn) if key == "glue2domainid"), "")


def _element(part: Entry) -> Optional[Element]:
    """None for what is not for jobs, such as the BDII's own endpoint."""
    info, url = part.words(INFO), part.one("GLUE2EndpointURL", NAME)
    interface = part.one("GLUE2EndpointInterfaceName")
    host = info.get("VmjobHost") or re.sub(r"^[a-z0-9+.-]*://|[:/].*", "", url)
    if not url or not host or not (part.has("GLUE2ComputingEndpoint") or interface in _KINDS):
        return None
    return Element(host[:NAME], url, info.get("VmjobKind") or _KINDS.get(interface, interface or "unknown"),
                   info.get("VmjobBatch", "unknown" if "VmjobHost" not in info else ""),
                   info.get("VmjobBatchVersion", ""), info.get("VmjobQueue", "default")[:1000],
                   number(info.get(site_ad.MAX_WALLTIME, "")))


def _nodes(part: Entry) -> Nodes:
    own, info = "GLUE2ExecutionEnvironment", part.words(INFO)
    total = part.number(f"{own}TotalInstances")
    online = max(total - part.number(f"{own}UnavailableInstances"), 0)
    if site_ad.HAS not in info:  # another publisher's: that it can is said of the service
        total, online = max(total, 1), max(online, 0 if total else 1)
    platform = part.one(f"{own}Platform")
    says = site_ad.ACCEL in info
    return Nodes(
        (part.one("GLUE2EntityName") or part.one("GLUE2ResourceID") or "nodes")[:NAME],
        KVM if info.get(site_ad.ACCEL) == KVM else TCG,
        info.get(site_ad.REASON, "" if says else "it does not say whether it has KVM")[:1000],
        listed(info[site_ad.NETWORKS])[:10] if site_ad.NETWORKS in info else ("nat",) if not says and
        part.one(f"{own}ConnectivityOut") == "true" else (),
        total, online if info.get(site_ad.HAS) != "false" else 0, part.number(f"{own}LogicalCPUs"),
        part.number(f"{own}MainMemorySize") * MIB, number(info.get(site_ad.MAX_MEMORY, "")) * MIB,
        number(info.get(site_ad.MAX_CPUS, "")), number(info.get(site_ad.FREE, "")),
        number(info.get(site_ad.RUNNING, "")),
        number(info.get(site_ad.OCCUPIED, "")), info.get("VmjobArch") or _PLATFORMS.get(platform, platform),
        part.one(f"{own}OSName"), part.one(f"{own}OSVersion"))


def _image(part: Entry) -> Optional[SiteImage]:
    """None for other software."""
    own, info = "GLUE2ApplicationEnvironment", part.words(INFO)
    known = digest(info.get(site_ad.DIGEST, ""))
    name = part.one("GLUE2EntityName", NAME) if known else tagged(part.one(f"{own}AppName"))
    if not name:
        return None
    return SiteImage(
        name, known, listed(info[site_ad.VOS]) if site_ad.VOS in info else (site_ad.ANYBODY,),
        info.get("VmjobIdentifier", "")[:1000], part.one(f"{own}AppVersion"), part.one(f"{own}Description", 10000),
        info.get("VmjobEndorser", "")[:1000], info.get("VmjobList", "")[:1000], info.get("VmjobArch", "x86_64"),
        info.get("VmjobOs", ""), info.get("VmjobOsVersion", ""), number(info.get("VmjobSize", "")),
        number(info.get("VmjobMemory", "")) * MIB, number(info.get("VmjobCpus", "")),
        _moment(part.one(f"{own}RemovalDate")), part.one(f"{own}Repository", 10000))


def _moment(text: str) -> int:
    """Seconds since 1970 of ``2026-11-18T12:00:00Z``; 0 for what is no time."""
    try:
        return max(0, calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
    except (ValueError, OverflowError):
        return 0


def _degrees(text: str, most: int) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if -most <= value <= most else 0.0
