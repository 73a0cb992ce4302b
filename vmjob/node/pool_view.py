"""All nodes of a pool, each by its own word: what the startd's hook put into its machine ad, and which have none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmjob.ads.site_ad import NodeAd
from vmjob.batch.pool import Pool, translated
from vmjob.batch.targets import Place
from vmjob.core.glideins import with_port

_CONFIG = Path("/etc/condor/condor_config")


@dataclass(frozen=True)
class View:
    """``silent``: machines that advertise nothing of vmjob."""

    pool: str
    nodes: tuple[NodeAd, ...]
    silent: tuple[str, ...]


def here() -> bool:
    """Has this machine an HTCondor, and the bindings to ask its pool?"""
    from importlib.util import find_spec

    named = os.environ.get("CONDOR_CONFIG", "")
    if find_spec("htcondor2") is None:
        return False
    return named not in ("", "ONLY_ENV") or (not named and _CONFIG.exists())


def look(address: str) -> View:
    """Asks the collector HOST[:PORT], empty: this machine's own. Raises PoolUnreachable, PoolRefused, PoolError."""
    from vmjob.ads.node_ad import PROJECTION, nodes_of

    pool = Pool(Place(with_port(address) if address else ""))
    collector = pool.collector  # says so where there are no bindings
    import htcondor2

    with translated(pool.place):
        ads = collector.query(htcondor2.AdType.Startd, projection=list(PROJECTION))
    nodes = nodes_of(ads)
    known = {one.machine for one in nodes}
    silent = sorted({name for ad in ads if isinstance(name := ad.get("Machine"), str)} - known)
    return View(address or "the pool of this machine", nodes, tuple(silent))
