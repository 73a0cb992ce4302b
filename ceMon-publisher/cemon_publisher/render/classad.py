"""Attributes for the schedd ad of a compute element: HTCondor configuration, one line an attribute.

=====================  =============================  ===============================================================
attribute              of the site ad (vmjob.ads.site_ad)  value
=====================  =============================  ===============================================================
HasVmjob               nodes online, expires          expression: true until VmjobExpires; false where none is online
VmjobSite              name
VmjobVersion           version
VmjobCreated           created                        seconds since 1970; also VmjobExpires
VmjobAccel             nodes                          kvm where any that are online have it, else tcg
VmjobNetworks          nodes                          words: what any that are online have
VmjobMaxMemory         nodes.max_memory               MiB, the largest of those online; also VmjobMaxCpus
VmjobMaxWallTime       max_walltime                   seconds; not there: no limit
VmjobVOs               vos                            words; ``*``: all VOs; also VmjobUnlisted
VmjobFree              nodes.free                     sum; also VmjobRunning, VmjobOccupied
VmjobImages            images                         words: the tags of each, vm_NAME and vm_sha256_HEX
VmjobCatalog           images                         list of ads: Name, Digest, AllowedVOs (list; not there: all),
                                                      Identifier, Version, Description, Endorser, List, Arch, OS,
                                                      OSVersion, Size (bytes), Memory (MiB), CPUs, Expires, Uri
VmjobNodes             nodes, all kinds               list of ads: Name, Accel, Reason, Networks (list), Total,
                                                      Online, CPUs, Memory (MiB), MaxCPUs, MaxMemory (MiB), Free,
                                                      Running, Occupied, Arch, OS, OSVersion
VmjobElements          elements                       list of ads: Host, Url, Kind, Batch, BatchVersion, Queue,
                                                      MaxWallTime (seconds), Waiting
OSG_Resource           name                           also OSG_ResourceGroup; what is OSG_… only where there is none yet
OSG_BatchSystems       elements.batch                 words, as OSG spells them
OSG_ResourceCatalog    nodes online × queues          list of ads as osg-configure makes them: Name, CPUs, Memory (MiB),
                                                      MaxWallTime (minutes), AllowedVOs, Requirements, Transform; and
                                                      HasVmjob, VmjobAccel
=====================  =============================  ===============================================================

Words are a string with commas. In the lists of ads what is empty or 0 is not there. ``vmjob sites`` makes a site ad of
this again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Union

from vmjob.ads import site_ad
from vmjob.ads.site_ad import ANYBODY, KVM, TCG, Element, Nodes, SiteAd, SiteImage
from vmjob.core.classads import Value, line, listing, literal, record, words

_MIB = 2**20
_OSG = {"condor": "Condor", "lsf": "LSF", "pbs": "PBS", "sge": "SGE", "slurm": "SLURM"}


def render(ad: SiteAd) -> str:
    """A file for ``config.d`` of HTCondor-CE, or of an HTCondor whose schedd is the compute element. What osg-configure
    says there of the site as a whole stays."""
    lines = [f"# What {line(ad.name)} says of its virtual machines. Made by vmjob-publish classad; changes are lost."]
    names = attributes(ad)
    for name, expression in names.items():
        told = f"{name} = {_inert(expression)}"
        lines += [f"if ! defined {name}", f"  {told}", "endif"] if name.startswith("OSG_") else [told]
    return "\n".join([*lines, f"SCHEDD_ATTRS = $(SCHEDD_ATTRS), {', '.join(names)}\n"])


def attributes(ad: SiteAd) -> dict[str, str]:
    """The expressions by name, as ClassAds."""
    online = ad.online
    has = ("true" if not ad.expires else f"time() < {site_ad.EXPIRES}") if online else "false"
    most = {site_ad.MAX_MEMORY: max((one.max_memory // _MIB for one in online), default=0),
            site_ad.MAX_CPUS: max((one.max_cpus for one in online), default=0)}
    plain: dict[str, Value] = {
        site_ad.SITE: ad.name, site_ad.VERSION: ad.version, "VmjobCreated": ad.created, site_ad.EXPIRES: ad.expires,
        site_ad.ACCEL: KVM if any(one.accel == KVM for one in online) else TCG, **most,
        site_ad.MAX_WALLTIME: ad.max_walltime}
    lists = {
        site_ad.NETWORKS: dict.fromkeys(network for one in online for network in one.networks),
        site_ad.VOS: ad.vos, site_ad.UNLISTED: ad.unlisted,
        site_ad.IMAGES: [tag for one in ad.images for tag in one.tags]}
    return {
        site_ad.HAS: has,
        **{name: literal(value) for name, value in plain.items() if value},
        **{name: words(values) for name, values in lists.items()},
        **{name: str(sum(getattr(one, key) for one in online)) for name, key in
           ((site_ad.FREE, "free"), (site_ad.RUNNING, "running"), (site_ad.OCCUPIED, "occupied"))},
        "VmjobCatalog": _ads(map(_image, ad.images)), "VmjobNodes": _ads(map(_nodes, ad.nodes)),
        "VmjobElements": _ads(map(_element, ad.elements)),
        "OSG_Resource": literal(ad.name), "OSG_ResourceGroup": literal(ad.name),
        "OSG_BatchSystems": words(dict.fromkeys(_OSG.get(one.batch, one.batch) for one in _ours(ad))),
        "OSG_ResourceCatalog": _ads(_resources(ad)),
    }


def _inert(expression: str) -> str:
    """A blank into what a configuration file would replace: $(NAME), $ENV(NAME), $$(NAME). $(DOLLAR) is no way around
    it: what it becomes is looked at again."""
    return re.sub(r"\$(?=[\w$]*\()", "$ ", expression)


def _ads(records: Iterable[Mapping[str, str]]) -> str:
    return "{ " + ", ".join(map(record, records)) + " }"


def _said(values: Mapping[str, Union[Value, tuple[str, ...]]]) -> dict[str, str]:
    """What is empty or 0 is not said."""
    return {name: listing(value) if isinstance(value, tuple) else literal(value) for name, value in values.items()
            if value}


def _image(one: SiteImage) -> dict[str, str]:
    return _said({
        "Name": one.name, "Digest": one.digest, "AllowedVOs": () if ANYBODY in one.vos else one.vos,
        "Identifier": one.identifier, "Version": one.version, "Description": one.description, "Endorser": one.endorser,
        "List": one.list, "Arch": one.arch, "OS": one.os, "OSVersion": one.os_version, "Size": one.size,
        "Memory": -(-one.memory // _MIB), "CPUs": one.cpus, "Expires": one.expires, "Uri": one.uri})


def _nodes(one: Nodes) -> dict[str, str]:
    return _said({
        "Name": one.name, "Accel": one.accel, "Reason": one.reason, "Networks": one.networks, "Total": one.total,
        "Online": one.online, "CPUs": one.cpus, "Memory": one.memory // _MIB, "MaxCPUs": one.max_cpus,
        "MaxMemory": one.max_memory // _MIB, "Free": one.free, "Running": one.running, "Occupied": one.occupied,
        "Arch": one.arch, "OS": one.os, "OSVersion": one.os_version})


def _element(one: Element) -> dict[str, str]:
    return _said({
        "Host": one.host, "Url": one.url, "Kind": one.kind, "Batch": one.batch, "BatchVersion": one.batch_version,
        "Queue": one.queue, "MaxWallTime": one.max_walltime, "Waiting": one.waiting})


def _ours(ad: SiteAd) -> tuple[Element, ...]:
    """Those that have a schedd."""
    return tuple(one for one in ad.elements if one.kind == "condor-ce")


def _resources(ad: SiteAd) -> Iterable[dict[str, str]]:
    """What a pilot factory can ask of this compute element: an entry for each kind of nodes and queue."""
    vos = () if ANYBODY in ad.vos else ad.vos
    for queue, limit in dict.fromkeys((one.queue, one.max_walltime) for one in _ours(ad)):
        minutes = min((one for one in (limit, ad.max_walltime) if one), default=0) // 60
        for one in ad.online:
            name = "-".join([ad.name, one.name, *[queue] * (queue != "default")])
            clauses = ["TARGET.RequestCPUs <= CPUs", "TARGET.RequestMemory <= Memory"]
            clauses += ["member(TARGET.VO, AllowedVOs)"] if vos else []
            transform = {"set_MaxMemory": "RequestMemory", **({} if queue == "default" else
                         {"set_remote_queue": literal(queue)}), "set_xcount": "RequestCPUs"}
            yield {**_said({"Name": name, "CPUs": one.max_cpus or one.cpus,
                            "Memory": (one.max_memory or one.memory) // _MIB, "MaxWallTime": minutes,
                            "AllowedVOs": vos, "HasVmjob": True, "VmjobAccel": one.accel}),
                   "Requirements": " && ".join(clauses), "Transform": record(transform)}
