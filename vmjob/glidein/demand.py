"""What the VO's pool asks of its glide-ins, and which of them are in a target's queue. Nothing is remembered: it is
asked again each time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmjob.batch.condor import Condor
from vmjob.batch.jobs import ATTRIBUTES, JobId, JobInfo, State, clusters_of
from vmjob.batch.pool import Ad, Pool, number, quote, translated
from vmjob.batch.targets import Place
from vmjob.core.errors import JobError
from vmjob.core.glideins import reserved_memory, with_port
from vmjob.core.pool_errors import PoolError, PoolUnreachable
from vmjob.core.units import MIB

FACTORY = "VmjobFactory"  # of a glide-in's machine ad: the factory's name
SUBMISSION = "VmjobGlidein"  # and that of the submission it came with
_MOST = 10_000  # jobs that are counted of one schedd, and CPUs of one guest; no factory needs to know of more
_SILENT = 150  # seconds without a word, which a guest has each 30 s, after which it is dead
# what RequestMemory and RequestCpus are made of where nobody has named them
_SIZES = ["RequestCpus", "RequestMemory", "MemoryUsage", "ImageSize", "ResidentSetSize"]
_IDLE = "JobStatus == 1 && JobUniverse == 5 && VmjobHolds =?= undefined"  # containers are of the vanilla universe too


@dataclass(frozen=True)
class Wants:
    """What is asked. ``factory``: its name; ``cpus``, ``memory``, ``disk`` (bytes; for the jobs): of one of its
    glide-ins; ``schedd``: the only one that counts; ``constraint``: what jobs must fit besides."""

    factory: str
    cpus: int
    memory: int
    disk: int
    schedd: str = ""
    constraint: str = ""

    @property
    def jobs_memory(self) -> int:
        """MiB of a glide-in that its jobs can have."""
        return max(1, self.memory // MIB - reserved_memory(self.cpus))


@dataclass(frozen=True)
class Demand:
    """``requests``: (CPUs, idle jobs that ask for so many), largest first; one that asks for more memory than goes with
    its CPUs counts for as many as have it; ``large``: idle jobs for which one glide-in is too small. ``free``: CPUs
    that each of the factory's glide-ins has free, with their memory; ``joined``: (submission, how many of its glide-ins
    are in the pool); ``busy``: one of them runs a job. ``silent``: schedds that did not answer, whose jobs are not
    counted."""

    requests: tuple[tuple[int, int], ...] = ()
    large: int = 0
    free: tuple[int, ...] = ()
    joined: tuple[tuple[str, int], ...] = ()
    busy: bool = False
    silent: tuple[str, ...] = ()

    @property
    def jobs(self) -> int:
        return sum(count for _, count in self.requests)

    @property
    def cpus(self) -> int:
        return sum(cpus * count for cpus, count in self.requests)


def pool_at(address: str) -> Pool:
    """The pool whose collector is HOST[:PORT]."""
    return Pool(Place(with_port(address)))


def ask(pool: Pool, wants: Wants) -> Demand:
    """Raises PoolUnreachable, PoolRefused and PoolError; JobError for a bad constraint."""
    fits = (f"(RequestCpus ?: 1) <= {wants.cpus} && (RequestMemory ?: 0) <= {wants.jobs_memory} && "
            f"(RequestDisk ?: 0) <= {wants.disk // 1024} && (RequestGPUs ?: 0) <= 0")
    counts: Counter[int] = Counter()
    large, silent = 0, []
    schedds = _schedds(pool, wants.schedd)
    idle = _IDLE + (f" && ({_checked(wants.constraint)})" if wants.constraint else "")
    for place, location in schedds:
        try:
            ads = _query(place, location, f"{idle} && ({fits})", _SIZES)
            large += len(_query(place, location, f"{idle} && (({fits}) =!= true)", ["ClusterId"]))
        except PoolError:
            silent.append(place.schedd)
            if len(silent) == len(schedds):
                raise
            continue
        counts.update(size_of(ad, wants) for ad in ads)
    free, joined, busy = workers(_machines(pool, wants.factory), time.time())
    return Demand(tuple(sorted(counts.items(), reverse=True)), large, free, joined, busy, tuple(silent))


def size_of(ad: Any, wants: Wants) -> int:
    """The CPUs of a glide-in that a job takes, for itself or for its memory. Pure."""
    memory = _whole(ad, "RequestMemory", 2**31)
    return max(1, _whole(ad, "RequestCpus", _MOST), -(-memory * wants.cpus // wants.jobs_memory))


def _whole(ad: Any, key: str, most: int) -> int:
    """A number of a stranger's ad, or what an expression comes to, from 0 to ``most``."""
    try:
        value = ad.eval(key)
    except (KeyError, AttributeError):  # none there; a plain mapping
        value = ad.get(key)
    found = number({key: value}, key)
    return 0 if math.isnan(found) else int(min(max(found, 0.0), most))


def _schedds(pool: Pool, name: str) -> list[tuple[Place, Ad]]:
    import htcondor2

    collector = pool.collector
    with translated(pool.place):
        found = list(collector.locateAll(htcondor2.DaemonType.Schedd))
    return schedds_of(pool.place, found, name)


def schedds_of(pool: Place, ads: Sequence[Any], name: str) -> list[tuple[Place, Ad]]:
    """The schedds to ask: all, or the one of this name. Pure. Raises PoolUnreachable when there is none."""
    named = [(Place(pool.collector, str(ad.get("Name"))), ad) for ad in ads]
    named = [one for one in named if name in ("", one[0].schedd)]
    if not named:  # so it is when a collector was restarted: no word of whether there are jobs
        which = f"no schedd '{name}'" if name else "no schedd at all"
        raise PoolUnreachable(f"{pool}: the collector answers, and knows {which}",
                              "check --pool and --schedd; a schedd that has just started is known after a few seconds")
    return named


def _query(place: Place, location: Ad, constraint: str, names: list[str]) -> list[Ad]:
    import htcondor2

    with translated(place):
        return list(htcondor2.Schedd(location).query(constraint, names, limit=_MOST))


def _checked(constraint: str) -> str:
    import classad2

    try:
        return str(classad2.ExprTree(constraint))
    except classad2.ClassAdException as wrong:
        raise JobError(f"--constraint {constraint}: this is no ClassAd expression",
                       "such as: Owner == \"ada\" && WantGlidein") from wrong


def _machines(pool: Pool, factory: str) -> list[Ad]:
    import htcondor2

    collector = pool.collector
    # both times are the collector's; a guest that was killed stays in it for CLASSAD_LIFETIME
    alive = f"{FACTORY} == {quote(factory)} && time() - LastHeardFrom < {_SILENT}"
    with translated(pool.place):
        return list(collector.query(htcondor2.AdType.Startd, constraint=alive, projection=[
            "Name", "Cpus", "Memory", "TotalSlotCpus", "TotalSlotMemory", "State", "Activity", "PartitionableSlot",
            "GLIDEIN_ToRetire", SUBMISSION]))


def workers(ads: Sequence[Any], now: float) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...], bool]:
    """``free``, ``joined`` and ``busy`` of a Demand, from the machine ads of the factory's glide-ins. Pure."""
    free: Counter[str] = Counter()
    guests: dict[str, set[str]] = {}
    for ad in ads:
        guest = str(ad.get("Name")).rpartition("@")[2]
        guests.setdefault(str(ad.get(SUBMISSION, "")), set()).add(guest)
        retire = number(ad, "GLIDEIN_ToRetire")
        if not (retire and retire <= now) and _takes_jobs(ad):
            free[guest] += _free(ad)
    return (tuple(sorted(filter(None, free.values()), reverse=True)),
            tuple(sorted((name, len(found)) for name, found in guests.items())),
            any(ad.get("State") == "Claimed" and ad.get("Activity") == "Busy" for ad in ads))


def _free(ad: Any) -> int:
    """A slot's CPUs; of a partitionable one those for which it has the memory too, that each has a share of."""
    cpus, every = _whole(ad, "Cpus", _MOST), _whole(ad, "TotalSlotMemory", 2**31)
    if ad.get("PartitionableSlot") is not True or not every:
        return cpus
    return min(cpus, _whole(ad, "Memory", 2**31) * _whole(ad, "TotalSlotCpus", _MOST) // every)


def _takes_jobs(ad: Any) -> bool:
    """A slot that is claimed and idle waits for its schedd's next job."""
    state = ad.get("State")
    if ad.get("PartitionableSlot") is True:
        return state not in ("Owner", "Drained")
    return state == "Unclaimed" or bool(state == "Claimed" and ad.get("Activity") == "Idle")


def fleet(batch: Condor, factory: str) -> list[JobInfo]:
    """The factory's glide-ins in the target's queue, those apart that were fetched. Raises as Condor does."""
    name = factory.replace(".", "[.]")
    ads = batch.pool.query(f'regexp("^{name}-g[0-9a-f]{{6}}$", VmjobName ?: "") && VmjobFetched =!= true', ATTRIBUTES,
                           clusters=True)
    found: list[JobInfo] = []
    for cluster in clusters_of(ads):
        made = cluster.total - cluster.waiting
        found += cluster.jobs
        found += [JobInfo(JobId(cluster.id, made + n), cluster.name, State.WAITING) for n in range(cluster.waiting)]
    return found
