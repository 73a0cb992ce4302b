"""The site ad: what the configuration says, what the nodes say, what the lists endorse and what the policies allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import vmjob
from cemon_publisher import probing, texts
from cemon_publisher.images import allowed
from cemon_publisher.listed import read
from vmjob import config, policy, sitead, siteconfig
from vmjob.policy import Limits, Policy
from vmjob.progress import Reporter
from vmjob.site_errors import SiteBroken
from vmjob.sitead import Nodes, SiteAd


def site_ad(file: Optional[Path], policies: Optional[Sequence[Path]], now: float, told: Reporter) -> SiteAd:
    """The whole of a site. ``file``, ``policies``: None for those of this machine; ``now``: seconds since 1970;
    ``told`` hears what is left out, and of a site that has nothing to offer.

    Raises SiteBroken, PolicyBroken, and what the source of the nodes has to say (PoolUnreachable, SitesUnreachable):
    then nothing is known, and nothing must be published."""
    file = file or siteconfig.find()
    if file is None:
        raise SiteBroken(f"{siteconfig.SITE_CONFIG}: there is no such file",
                         "write one (docs/site-admin.md has a whole one), or name another: --config FILE; --example "
                         "shows what comes of it")
    site = siteconfig.load(file)
    texts.check(site)
    rules = [policy.load(one.absolute()) for one in (config.policy_files() if policies is None else policies)]
    # no policy: everybody may run everything, also what is in the lists that a site follows where none is named
    rules = rules or [Policy(config.SITE_POLICY)]
    may = allowed(site, rules, read(rules, now, told), now)
    seen = probing.probe(site, now, told.note)
    kinds = tuple(_narrowed(one, may.limits) for one in probing.kinds(seen))
    if not may.images:
        told.note("no image of a list that counts may run here: what is published says what the nodes can do, and "
                  "names no image")
    if not any(one.online for one in kinds):
        told.note("no node takes virtual machines now")
    versions = sorted({one.ad.version for one in seen if one.ad.version})
    version = sitead.line(versions[0], 40) if versions else vmjob.__version__
    return SiteAd(
        site.name, may.vos, site.elements, kinds, may.images, may.unlisted, may.limits.lifetime or 0, version, int(now),
        int(now) + site.validity, site.description, site.web, site.contact, site.country, site.latitude, site.longitude)


def _narrowed(one: Nodes, limits: Limits) -> Nodes:
    """What a guest gets there within the policies' limits."""
    networks = one.networks if limits.networks is None else \
        tuple(net for net in one.networks if net in [allowed.value for allowed in limits.networks])
    return replace(one, networks=networks, max_memory=_least(one.max_memory, limits.memory),
                   max_cpus=_least(one.max_cpus, limits.cpus))


def _least(has: int, limit: Optional[int]) -> int:
    """0: not known."""
    return has if limit is None else min(has, limit) if has else limit
