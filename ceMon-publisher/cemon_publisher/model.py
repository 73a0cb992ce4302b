"""The site ad: what the configuration says, what the nodes say, what the lists endorse and what the policies allow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from cemon_publisher import fits, probing, texts
from cemon_publisher.images import Allowed, allowed
from cemon_publisher.listed import read
from cemon_publisher.probing import Note
from vmjob.ads import site_ad as sitead
from vmjob.ads import site_yaml
from vmjob.ads.site_ad import Nodes, SiteAd, SiteImage, covers
from vmjob.ads.site_yaml import Site
from vmjob.core import config
from vmjob.core.model import Network
from vmjob.core.progress import Reporter
from vmjob.core.site_errors import SiteBroken
from vmjob.core.units import format_size
from vmjob.core.version import __version__
from vmjob.policy import file as policy
from vmjob.policy.file import Limits, Policy

_NETWORKS = tuple(one.value for one in (Network.NAT, Network.ISOLATED, Network.NONE))
_DIGEST_TAG = re.compile(r"vm_sha256_[0-9a-f]{64}\Z")
_TOLD = 5  # images by name, of those that are left out


def site_ad(file: Optional[Path], policies: Optional[Sequence[Path]], now: float, told: Reporter) -> SiteAd:
    """The whole of a site. ``file``, ``policies``: None for those of this machine; ``now``: seconds since 1970;
    ``told`` hears what is left out, and of a site that has nothing to offer.

    Raises SiteBroken, PolicyBroken, and what the source of the nodes has to say (PoolUnreachable, SitesUnreachable):
    then nothing is known, and nothing must be published."""
    file = file or site_yaml.find()
    if file is None:
        raise SiteBroken(f"{site_yaml.SITE_CONFIG}: there is no such file",
                         "write one (docs/site-admin.md has a whole one), or name another: --config FILE; --example "
                         "shows what comes of it")
    site = site_yaml.load(file)
    texts.check(site)
    rules = [policy.load(one.absolute()) for one in (config.policy_files() if policies is None else policies)]
    # no policy: everybody may run everything, also what is in the lists that a site follows where none is named
    rules = rules or [Policy(config.SITE_POLICY)]
    texts.check_vos(site, rules)
    may = allowed(site, rules, read(rules, now, told), now)
    seen = probing.probe(site, now, told.note)
    kinds = tuple(_narrowed(one, may.limits) for one in probing.kinds(seen))
    images = tuple(_runnable(may.images, kinds, told.note))
    _tell(site, may, kinds, told.note)
    versions = sorted({one.ad.version for one in seen if one.ad.version})
    version = sitead.line(versions[0], 40) if versions else __version__
    return SiteAd(
        site.name, may.vos, site.elements, kinds, images, may.unlisted, may.limits.lifetime or 0, version, int(now),
        int(now) + site.validity, site.description, site.web, site.contact, site.country, site.latitude, site.longitude)


def _tell(site: Site, may: Allowed, kinds: Sequence[Nodes], note: Note) -> None:
    """What an admin may not have meant."""
    if not site.elements:
        note(f"no elements in {site.file}: nobody can send jobs here")
    nothing = [vo for vo in site.vos if not covers(may.vos, vo)]
    if nothing:
        note(f"the policy lets jobs of {', '.join(nothing)} run nothing here: not published, though {site.file} has "
             "them in vos")
    if not may.images:
        note("no image of a list that counts may run here: what is published says what the nodes can do, and names no "
             "image")
    if not any(one.online for one in kinds):
        note("no node takes virtual machines now" + (", so no image is published" if may.images else ""))


def _runnable(images: Sequence[SiteImage], kinds: Sequence[Nodes], note: Note) -> Iterator[SiteImage]:
    """Those that some node can run now, under names that are theirs."""
    out, online = [], any(one.online for one in kinds)
    for one in images:
        tag = one.tags[0].lower()  # GLUE 1.3 knows no case
        if _DIGEST_TAG.match(tag) and tag != one.tags[1]:
            out.append(f"{one.name} ({one.digest}): its name is that of another image's digest")
        elif any(fits.runs(one, kind) for kind in kinds):
            yield one
        elif online:  # else one word on that is enough
            needs = f"{one.arch}, {format_size(one.memory)} of memory, CPUs: {one.cpus or 1}"
            out.append(f"{one.name}: no node that is online can run it: it needs {needs}")
    for why in out[:_TOLD]:
        note(f"an image is left out: {why}")
    if out[_TOLD:]:
        note(f"… and {len(out) - _TOLD} more images")


def _narrowed(one: Nodes, limits: Limits) -> Nodes:
    """What a guest gets there within the policies' limits; where no network is left, no guest at all."""
    one = replace(one, max_memory=_least(one.max_memory, limits.memory), max_cpus=_least(one.max_cpus, limits.cpus))
    if limits.networks is None:
        return one
    # with nat a node can do the others too (as in sites.matching); what it can is not known where it says nothing
    can = one.networks if one.networks and Network.NAT.value not in one.networks else _NETWORKS
    networks = tuple(net for net in can if net in [network.value for network in limits.networks])
    if networks or not one.online:
        return replace(one, networks=networks)
    return replace(one, networks=(), online=0, free=0,
                   reason=f"the policy allows no network that these nodes have: {', '.join(one.networks)}")


def _least(has: int, limit: Optional[int]) -> int:
    """0: not known."""
    return has if limit is None else min(has, limit) if has else limit
