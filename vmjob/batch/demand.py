"""What the VO's pool asks of its glide-ins, and which of them are in a target's queue. Nothing is remembered: it is
asked anew each time."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from vmjob.batch.condor import Condor
from vmjob.batch.jobs import ATTRIBUTES, JobId, JobInfo, State, clusters_of
from vmjob.batch.pool import Ad, Pool, number, quote, translated
from vmjob.batch.targets import Place
from vmjob.errors import JobError, PoolError, PoolUnreachable
from vmjob.units import MIB

FACTORY = "VmjobFactory"  # of a glide-in's machine ad: the factory's name
SUBMISSION = "VmjobGlidein"  # and that of the submission it came with
_MOST = 10_000  # jobs that are counted of one schedd; no factory needs to know of more
_IDLE = "JobStatus == 1 && JobUniverse == 5 && VmjobHolds =?= undefined"  # containers are of the vanilla universe too


@dataclass(frozen=True)
class Wants:
    """What is asked. ``factory``: its name; ``cpus``, ``memory`` (bytes): of one of its glide-ins; ``schedd``: the only
    one that counts; ``constraint``: what jobs must fit besides."""

    factory: str
    cpus: int
    memory: int
    schedd: str = ""
    constraint: str = ""


@dataclass(frozen=True)
class Demand:
    """``requests``: (CPUs, idle jobs that ask for so many), largest first; ``since``: when the oldest of them became
    idle, epoch seconds; ``large``: idle jobs for which one glide-in is too small. ``free``: CPUs that each of the
    factory's glide-ins has free; ``joined``: (submission, how many of its glide-ins are in the pool). ``silent``:
    schedds that did not answer, whose jobs are not counted."""

    requests: tuple[tuple[int, int], ...] = ()
    since: Optional[float] = None
    large: int = 0
    free: tuple[int, ...] = ()
    joined: tuple[tuple[str, int], ...] = ()
    silent: tuple[str, ...] = ()

    @property
    def jobs(self) -> int:
        return sum(count for _, count in self.requests)

    @property
    def cpus(self) -> int:
        return sum(cpus * count for cpus, count in self.requests)


def pool_at(address: str) -> Pool:
    """The pool whose collector is HOST[:PORT]."""
    return Pool(Place(address if re.search(r"[^:]:[0-9]+$|\]:[0-9]+$", address) else f"{address}:9618"))


def ask(pool: Pool, wants: Wants) -> Demand:
    """Raises PoolUnreachable, PoolRefused and PoolError; JobError for a bad constraint."""
    fits = f"(RequestCpus ?: 1) <= {wants.cpus} && (RequestMemory ?: 0) <= {wants.memory // MIB}"
    counts: Counter[int] = Counter()
    since: list[float] = []
    large, silent = 0, []
    schedds = _schedds(pool, wants.schedd)
    idle = _IDLE + (f" && ({_checked(wants.constraint)})" if wants.constraint else "")
    for place, location in schedds:
        try:
            ads = _query(place, location, f"{idle} && ({fits})", ["RequestCpus", "EnteredCurrentStatus", "QDate"])
            large += len(_query(place, location, f"{idle} && (({fits}) =!= true)", ["ClusterId"]))
        except PoolError:
            silent.append(place.schedd)
            if len(silent) == len(schedds):
                raise
            continue
        counts.update(max(1, int(number(ad, "RequestCpus"))) for ad in ads)
        since += [number(ad, "EnteredCurrentStatus") or number(ad, "QDate") for ad in ads]
    free, joined = workers(_machines(pool, wants.factory), time.time())
    return Demand(tuple(sorted(counts.items(), reverse=True)), min(since, default=None), large, free, joined,
                  tuple(silent))


def _schedds(pool: Pool, name: str) -> list[tuple[Place, Ad]]:
    import htcondor2

    collector = pool.collector
    with translated(pool.place):
        found = list(collector.locateAll(htcondor2.DaemonType.Schedd))
    named = [(Place(pool.place.collector, str(ad.get("Name"))), ad) for ad in found]
    named = [one for one in named if name in ("", one[0].schedd)]
    if name and not named:
        raise PoolUnreachable(f"{pool.place}: the collector answers, and knows no schedd '{name}'",
                              "check --schedd; a schedd that has just started is known after a few seconds")
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
    with translated(pool.place):
        return list(collector.query(htcondor2.AdType.Startd, constraint=f"{FACTORY} == {quote(factory)}", projection=[
            "Name", "Cpus", "State", "Activity", "PartitionableSlot", "GLIDEIN_ToRetire", SUBMISSION]))


def workers(ads: Sequence[Any], now: float) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...]]:
    """``free`` and ``joined`` of a Demand, from the machine ads of the factory's glide-ins. Pure."""
    free: Counter[str] = Counter()
    guests: dict[str, set[str]] = {}
    for ad in ads:
        guest = str(ad.get("Name")).rpartition("@")[2]
        guests.setdefault(str(ad.get(SUBMISSION, "")), set()).add(guest)
        retire = number(ad, "GLIDEIN_ToRetire")
        if not (retire and retire <= now) and _takes_jobs(ad):
            free[guest] += int(number(ad, "Cpus"))
    return (tuple(sorted(filter(None, free.values()), reverse=True)),
            tuple(sorted((name, len(found)) for name, found in guests.items())))


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
