"""GLUE 2.0 (GFD.147, LDAP rendering GFD.218) for a resource BDII, below ``GLUE2GroupID=resource,o=glue``, which the
BDII itself has. ``vmjob sites`` reads a whole site ad back from it::

    SiteAd         GLUE2ComputingService     GLUE2EntityName name; GLUE2EntityCreationTime created; expires: that +
                                             GLUE2EntityValidity; GLUE2EntityOtherInfo VmjobSite, VmjobVersion,
                                             VmjobVOs, VmjobUnlisted, VmjobMaxWallTime (s), VmjobDescription, VmjobWeb
                   GLUE2Location             …Country, …Latitude, …Longitude      below the service
                   GLUE2Contact              …Detail contact                      below the service
    Element        GLUE2ComputingEndpoint    GLUE2EndpointURL url; OtherInfo VmjobHost, VmjobKind, VmjobBatch,
                                             VmjobBatchVersion, VmjobQueue, VmjobMaxWallTime (s);
                                             GLUE2ComputingEndpointWaitingJobs waiting
    Nodes          GLUE2ExecutionEnvironment GLUE2EntityName name; …TotalInstances total; …UnavailableInstances total -
                                             online; …LogicalCPUs cpus; …MainMemorySize memory (MiB; UNKNOWN: not
                                             known); …OSName os; …OSVersion os_version; OtherInfo HasVmjob (true,
                                             false), VmjobAccel, VmjobAccelReason, VmjobNetworks, VmjobMaxMemory (MiB),
                                             VmjobMaxCpus, VmjobFree, VmjobRunning, VmjobOccupied, VmjobArch
    SiteImage      GLUE2ApplicationEnvironment  GLUE2EntityName name (…AppName is the tag vm_NAME, the word that GLUE
                                             1.3, CEMon and ARC have for it); …AppVersion version; …Description;
                                             …Repository uri; …RemovalDate expires; OtherInfo VmjobDigest, VmjobVOs,
                                             VmjobIdentifier, VmjobEndorser, VmjobList, VmjobArch, VmjobOs,
                                             VmjobOsVersion, VmjobSize (bytes), VmjobMemory (MiB), VmjobCpus

OtherInfo is ``Key=value``, lists are words with commas (in a word they become ``_``), what is not known is not there.
Every text has ``dn%3A`` for ``dn:`` (ldif.py says why). For readers who know nothing of us there are a share for each
element and VO with its mapping policy, an access policy for each endpoint, and the manager. The site itself
(AdminDomain) is the site BDII's. Images that no node there could run now are not published.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cemon_publisher import check, fits
from cemon_publisher.ldif import Entry, Values, distinct, entry, identifier, moment, short, text, words
from vmjob.ads import site_ad
from vmjob.ads.site_ad import Element, Nodes, SiteAd

BASE = "GLUE2GroupID=resource,o=glue"
UNKNOWN = 999_999_999_999_999_999  # GFD.147, appendix A: of a number that must be there
CAN_RUN_VMS = "executionmanagement.dynamicvmdeploy"
_CAPABILITIES = ("executionmanagement.jobexecution", "executionmanagement.jobmanager")
_INTERFACES = {"condor-ce": ("org.opensciencegrid.htcondorce", "HTCondor", "HTCondor-CE"),
               "arc": ("org.nordugrid.arcrest", "NorduGrid", "nordugrid-arc")}
_PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
_MIB = 2**20


def render(ad: SiteAd) -> str:
    """The LDIF. Raises VmjobError where it contradicts itself (a bug): then nothing is published."""
    return text(check.glue2(list(entries(ad))))


def entries(ad: SiteAd) -> Iterator[Entry]:
    """Parents before children."""
    service, manager = _id(ad, "ComputingService"), _id(ad, "ComputingManager")
    top = f"GLUE2ServiceID={service},{BASE}"
    when: dict[str, Values] = {"GLUE2EntityCreationTime": moment(ad.created),
                               "GLUE2EntityValidity": max(ad.expires - ad.created, 0) if ad.expires else None}
    make = partial(_entry, top, when)
    nodes = dict(zip(distinct(_id(ad, "ExecutionEnvironment", one.name) for one in ad.nodes), ad.nodes))
    ends = dict(zip(distinct(_id(ad, "ComputingEndpoint", one.host, one.kind, one.batch, one.queue)
                             for one in ad.elements), ad.elements))
    yield _service(ad, service, when)
    yield from _place(ad, service, top, when)
    yield make("Manager", manager, ("Manager", "ComputingManager"), {
        "GLUE2ManagerProductName": ad.elements[0].batch if ad.elements else "unknown",
        "GLUE2ManagerProductVersion": ad.elements[0].batch_version if ad.elements else "",
        "GLUE2ComputingManagerTotalLogicalCPUs": sum(one.total * one.cpus for one in ad.nodes) or None,
        "GLUE2ManagerServiceForeignKey": service,
        "GLUE2ComputingManagerComputingServiceForeignKey": service})
    for name, kind in nodes.items():
        yield make("Resource", name, ("Resource", "ExecutionEnvironment"),
                   {**_nodes(kind), "GLUE2ResourceManagerForeignKey": manager,
                    "GLUE2ExecutionEnvironmentComputingManagerForeignKey": manager})
    for name, element in ends.items():
        yield make("Endpoint", name, ("Endpoint", "ComputingEndpoint"), {
            **_endpoint(ad, element), "GLUE2EndpointServiceForeignKey": service,
            "GLUE2ComputingEndpointComputingServiceForeignKey": service})
        yield _policy(f"GLUE2EndpointID={name},{top}", when, "AccessPolicy", ad.vos, "Endpoint", name)
        for vo in fits.vos(ad):
            yield from _share(ad, service, top, when, (name, element), list(nodes), vo)
    yield from _images(ad, manager, top, when, nodes)


def _entry(parent: str, when: dict[str, Values], key: str, name: str, classes: tuple[str, ...],
           attributes: dict[str, Values]) -> Entry:
    return entry(f"GLUE2{key}ID", name, parent, ("GLUE2Entity", *(f"GLUE2{one}" for one in classes)),
                 {**when, **attributes})


def _id(ad: SiteAd, kind: str, *parts: str) -> str:
    """As ARC makes them: ``urn:ogf:KIND:WHERE:…``."""
    return identifier("urn:ogf", kind, ad.name, "vmjob", *parts)


def _info(**words: object) -> list[str]:
    """OtherInfo of what is known; keys as in vmjob.ads.site_ad, or ``Vmjob`` and the name of the field there."""
    return [f"{key}={value}" for key, value in words.items() if value not in (None, "", 0)]


def _service(ad: SiteAd, service: str, when: dict[str, Values]) -> Entry:
    return _entry(BASE, when, "Service", service, ("Service", "ComputingService"), {
        "GLUE2EntityName": ad.name, "GLUE2ServiceType": "org.vmjob", "GLUE2ServiceQualityLevel": "production",
        "GLUE2ServiceCapability": _capabilities(ad),
        "GLUE2ServiceComplexity": f"endpointType={len({one.kind for one in ad.elements})}, "
                                  f"share={len(ad.elements) * len(fits.vos(ad))}, resource={len(ad.nodes)}",
        "GLUE2ServiceAdminDomainForeignKey": ad.name,
        "GLUE2ComputingServiceRunningJobs": sum(one.running for one in ad.nodes),
        "GLUE2EntityOtherInfo": _info(**{
            site_ad.SITE: ad.name, site_ad.HAS: _bool(bool(ad.online)), site_ad.VERSION: ad.version,
            site_ad.VOS: words(ad.vos), site_ad.UNLISTED: words(ad.unlisted),
            site_ad.MAX_WALLTIME: ad.max_walltime, "VmjobDescription": ad.description, "VmjobWeb": ad.web})})


def _capabilities(ad: SiteAd) -> list[str]:
    return [*_CAPABILITIES, *((CAN_RUN_VMS,) if ad.online else ())]


def _bool(value: bool) -> str:
    return "true" if value else "false"  # lower case: ExtendedBoolean_t


def _rule(vo: str) -> str:
    return "ALL" if vo == site_ad.ANYBODY else f"VO:{vo}"


def _state(ad: SiteAd) -> str:
    return "production" if ad.online else "closed"


def _place(ad: SiteAd, service: str, top: str, when: dict[str, Values]) -> Iterator[Entry]:
    somewhere = ad.latitude or ad.longitude
    if ad.country or somewhere:
        yield _entry(top, when, "Location", _id(ad, "Location"), ("Location",), {
            "GLUE2LocationCountry": ad.country,
            "GLUE2LocationLatitude": f"{ad.latitude:.6f}" if somewhere else None,
            "GLUE2LocationLongitude": f"{ad.longitude:.6f}" if somewhere else None,
            "GLUE2LocationServiceForeignKey": service})
    if ad.contact:
        yield _entry(top, when, "Contact", _id(ad, "Contact"), ("Contact",), {
            "GLUE2ContactDetail": ad.contact, "GLUE2ContactType": "general", "GLUE2ContactServiceForeignKey": service})


def _nodes(one: Nodes) -> dict[str, Values]:
    own = "GLUE2ExecutionEnvironment"
    return {
        "GLUE2EntityName": one.name, f"{own}Platform": _PLATFORMS.get(one.arch, one.arch),
        f"{own}MainMemorySize": one.memory // _MIB or UNKNOWN, f"{own}LogicalCPUs": one.cpus or None,
        f"{own}OSFamily": "linux", f"{own}OSName": one.os, f"{own}OSVersion": one.os_version,
        f"{own}ConnectivityIn": "false", f"{own}ConnectivityOut": _bool("nat" in one.networks),
        f"{own}VirtualMachine": "false",  # of the node itself, not of what it can run
        f"{own}TotalInstances": one.total, f"{own}UnavailableInstances": max(one.total - one.online, 0),
        "GLUE2EntityOtherInfo": _info(**{
            site_ad.HAS: _bool(bool(one.online)), site_ad.ACCEL: one.accel, site_ad.REASON: one.reason,
            site_ad.NETWORKS: words(one.networks), site_ad.MAX_MEMORY: one.max_memory // _MIB,
            site_ad.MAX_CPUS: one.max_cpus, site_ad.FREE: str(one.free), site_ad.RUNNING: str(one.running),
            site_ad.OCCUPIED: str(one.occupied), "VmjobArch": one.arch})}


def _endpoint(ad: SiteAd, one: Element) -> dict[str, Values]:
    interface, implementor, implementation = _INTERFACES[one.kind]
    return {
        "GLUE2EntityName": f"{one.host} {one.queue}", "GLUE2EndpointURL": one.url,
        "GLUE2EndpointInterfaceName": interface, "GLUE2EndpointImplementor": implementor,
        "GLUE2EndpointImplementationName": implementation, "GLUE2EndpointQualityLevel": "production",
        "GLUE2EndpointCapability": _capabilities(ad), "GLUE2EndpointServingState": _state(ad),
        "GLUE2EndpointHealthState": "ok" if ad.online else "critical",
        "GLUE2EndpointHealthStateInfo": "" if ad.online else "no node takes virtual machines now",
        "GLUE2ComputingEndpointWaitingJobs": one.waiting or None,
        "GLUE2EntityOtherInfo": _info(**{
            "VmjobHost": one.host, "VmjobKind": one.kind, "VmjobBatch": one.batch,
            "VmjobBatchVersion": one.batch_version, "VmjobQueue": one.queue, site_ad.MAX_WALLTIME: one.max_walltime})}


def _share(ad: SiteAd, service: str, top: str, when: dict[str, Values], end: tuple[str, Element], nodes: list[str],
           vo: str) -> Iterator[Entry]:
    """What one VO gets at one element."""
    endpoint, element = end
    share = short(f"{endpoint.replace(':ComputingEndpoint:', ':ComputingShare:')}/{identifier(vo)}")
    yield _entry(top, when, "Share", share, ("Share", "ComputingShare"), {
        "GLUE2EntityName": f"{element.queue} for {'all' if vo == site_ad.ANYBODY else vo}",
        "GLUE2ComputingShareServingState": _state(ad), "GLUE2ComputingShareMappingQueue": element.queue,
        "GLUE2ComputingShareMaxWallTime": fits.walltime(ad, element) or None,
        "GLUE2ComputingShareMaxMainMemory": max((one.max_memory for one in ad.nodes), default=0) // _MIB or None,
        "GLUE2ComputingShareMaxSlotsPerJob": max((one.max_cpus for one in ad.nodes), default=0) or None,
        "GLUE2ComputingShareFreeSlots": sum(one.free for one in ad.nodes),
        "GLUE2ShareServiceForeignKey": service, "GLUE2ComputingShareComputingServiceForeignKey": service,
        "GLUE2ShareEndpointForeignKey": endpoint, "GLUE2ComputingShareComputingEndpointForeignKey": endpoint,
        "GLUE2ShareResourceForeignKey": nodes, "GLUE2ComputingShareExecutionEnvironmentForeignKey": nodes})
    yield _policy(f"GLUE2ShareID={share},{top}", when, "MappingPolicy", (vo,), "Share", share)


def _policy(parent: str, when: dict[str, Values], kind: str, vos: tuple[str, ...], of: str, name: str) -> Entry:
    return _entry(parent, when, "Policy", short(f"{name}/policy"), ("Policy", kind), {
        "GLUE2PolicyScheme": "org.glite.standard", "GLUE2PolicyRule": [_rule(vo) for vo in vos] or ["NONE"],
        f"GLUE2{kind}{of}ForeignKey": name})


def _images(ad: SiteAd, manager: str, top: str, when: dict[str, Values], nodes: dict[str, Nodes]) -> Iterator[Entry]:
    own = "GLUE2ApplicationEnvironment"
    can = [(image, names) for image in ad.images
           if (names := [name for name, kind in nodes.items() if fits.runs(image, kind)])]
    ids = distinct(_id(ad, "ApplicationEnvironment", image.digest, image.name) for image, _ in can)
    for name, (image, where) in zip(ids, can):
        yield entry(f"{own}ID", name, f"GLUE2ResourceID={where[0]},{top}", ("GLUE2Entity", own), {
            **when, "GLUE2EntityName": image.name, f"{own}AppName": image.tags[0], f"{own}AppVersion": image.version,
            f"{own}Description": image.description, f"{own}Repository": image.uri, f"{own}State": "installable",
            f"{own}RemovalDate": moment(image.expires),
            f"{own}ComputingManagerForeignKey": manager, f"{own}ExecutionEnvironmentForeignKey": where,
            "GLUE2EntityOtherInfo": _info(**{
                site_ad.DIGEST: image.digest, site_ad.VOS: words(image.vos), "VmjobIdentifier": image.identifier,
                "VmjobEndorser": image.endorser, "VmjobList": image.list, "VmjobArch": image.arch,
                "VmjobOs": image.os, "VmjobOsVersion": image.os_version, "VmjobSize": image.size,
                "VmjobMemory": -(-image.memory // _MIB), "VmjobCpus": image.cpus})})
