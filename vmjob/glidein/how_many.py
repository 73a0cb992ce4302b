"""The policy of ``vmjob glidein keep``: how many glide-ins to submit, which to remove, when to stop trying. Pure: what
is true now goes in, what to do comes out. The loop over it is factory.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional

from vmjob.batch.jobs import JobId, JobInfo, State
from vmjob.core.errors import VmjobError
from vmjob.core.pool_errors import JobHeld, PoolError
from vmjob.core.units import format_duration
from vmjob.glidein.history import STEADY, STOPPED, Ended

if TYPE_CHECKING:
    from vmjob.glidein.demand import Demand

LONGEST_PAUSE = 1800.0  # seconds
QUIET = 2  # cycles without an idle job after which glide-ins that wait are removed
_WAITING = (State.WAITING, State.IDLE)
_LIVE = (*_WAITING, State.RUNNING, State.TRANSFERRING, State.SUSPENDED)
_LEAVING = ("collect", "teardown")  # stages of a run


@dataclass(frozen=True)
class Limits:
    """``least``, ``most``: glide-ins in the target's queue; ``cpus``: of one; ``at_once``: new ones a cycle;
    ``backoff``: seconds after the first failure; ``give_up``: after so many failed tries in a row; ``every``: seconds
    between cycles; ``cron``: started again and again by a program, so that perhaps nobody has seen it give up."""

    most: int
    least: int = 0
    cpus: int = 1
    at_once: int = 10
    backoff: float = 60.0
    give_up: int = 10
    every: float = 30.0
    cron: bool = False


@dataclass(frozen=True)
class Counts:
    """Glide-ins at the target. ``starting``: on a node and not yet in the pool; ``working``: in the pool, whether they
    have a job or not; ``leaving``: their results are on the way back."""

    waiting: int = 0
    starting: int = 0
    working: int = 0
    leaving: int = 0

    @property
    def live(self) -> int:
        return self.waiting + self.starting + self.working + self.leaving

    @property
    def coming(self) -> int:
        return self.waiting + self.starting


@dataclass(frozen=True)
class Plan:
    """``new``: glide-ins to submit; ``remove``: those that wait for nothing; ``why``: what keeps us from submitting
    more, where more are asked for."""

    new: int = 0
    remove: tuple[JobId, ...] = ()
    why: str = ""


def decide(limits: Limits, demand: Demand, fleet: Sequence[JobInfo], past: Sequence[Ended], now: float,
           quiet: int = 0) -> Plan:
    """What to do now. The rule:

    1. The pool's idle jobs are laid, the largest first, into CPUs that its glide-ins have free, then into glide-ins
       that are on their way (they wait at the target, or boot), then into as many new ones as it takes.
    2. At the target are never more than ``most``; fewer than ``least`` are filled up.
    3. At most ``at_once`` are submitted in a cycle. After a failure it is one, when none is on its way or leaves, until
       one has worked that was submitted later: it ended well, or is in the pool for ten minutes.
    4. After a failed try none is submitted for ``backoff`` seconds, after the next for twice as long, up to half an
       hour. What was submitted together is one try. Tries that ran no job although the pool asked are treated so too,
       while the pool asks and none of its glide-ins runs a job; giving up is for failures alone.
    5. When the pool has asked for nothing in two cycles, those that still wait are removed, down to ``least``.

    ``past``: the ended ones, oldest first; ``quiet``: cycles for which the pool has asked for nothing, this one
    included.
    """
    counts = count(fleet, demand)
    asked = counts.live + missing(limits.cpus, demand, counts.coming)
    wanted = max(0, min(max(asked, limits.least), limits.most) - counts.live)
    bad = bad_tries(past, fleet, demand, now)
    stopped = next((one for one in reversed(past) if one.outcome == STOPPED), None) if limits.cron else None
    left = max(blocked_until(bad, limits.backoff), stopped.ended + LONGEST_PAUSE if stopped else 0.0) - now
    if wanted and left > 0:
        why = tell(bad) if bad else "it gave up"
        return Plan(why=f"nothing is submitted for {_about(left)} more: {why}")
    new = min(wanted, limits.at_once if not bad else 0 if counts.coming or counts.leaving else 1)
    remove = surplus(limits, fleet, counts, now) if quiet >= QUIET and not demand.silent and not new else ()
    over = asked - max(limits.most, counts.live)
    return Plan(new, remove, _why(limits, demand, over, bool(bad) and wanted > new))


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else format_duration(seconds)


def _why(limits: Limits, demand: Demand, over: int, careful: bool) -> str:
    reasons = []
    if over > 0:
        reasons.append(f"the jobs would need {over} more, --max is {limits.most}")
    if careful:
        reasons.append("one at a time after failures, until one has worked")
    if demand.large:
        reasons.append(f"for {demand.large} idle job{'s' if demand.large > 1 else ''} one glide-in is too small")
    return "; ".join(reasons)


def count(fleet: Sequence[JobInfo], demand: Optional[Demand]) -> Counts:
    """How many of the glide-ins at the target are where. One that runs and is not in the pool is on its way there, or
    has just left: then for some seconds fewer are submitted than could be. The same where the pool's collector was
    restarted and has forgotten all."""
    waiting = sum(job.state in _WAITING for job in fleet)
    leaving = sum(job.state is State.TRANSFERRING or (job.state in _LIVE and job.stage in _LEAVING) for job in fleet)
    active = Counter(job.name for job in fleet if job.state is State.RUNNING and job.stage not in _LEAVING)
    paused = Counter(job.name for job in fleet if job.state is State.SUSPENDED and job.stage not in _LEAVING)
    joined = dict(demand.joined) if demand else {}
    starting = sum(max(0, number - joined.get(name, 0)) for name, number in active.items())
    return Counts(waiting, starting, sum(active.values()) - starting + sum(paused.values()), leaving)


def missing(cpus: int, demand: Demand, coming: int) -> int:
    """New glide-ins of so many ``cpus`` that the idle jobs need. CPUs of two guests are no use to one job, so they are
    not just added up."""
    spaces = [*demand.free, *[cpus] * coming]
    new: list[int] = []
    for size, jobs in demand.requests:  # largest first
        for row in (spaces, new):
            for at, space in enumerate(row):
                fit = min(jobs, space // size)
                row[at] -= fit * size
                jobs -= fit
        while jobs > 0 and size <= cpus:
            each = cpus // size
            whole, rest = divmod(jobs, each)
            new += [cpus - each * size] * whole + ([cpus - rest * size] if rest else [])
            jobs = 0
    return len(new)


def surplus(limits: Limits, fleet: Sequence[JobInfo], counts: Counts, now: float) -> tuple[JobId, ...]:
    """Glide-ins that wait while nobody needs them, newest first; one that has just been submitted is left alone."""
    old = [job for job in fleet if job.state is State.IDLE and job.submitted
           and now - job.submitted >= QUIET * limits.every]
    old.sort(key=lambda job: (job.submitted or 0.0, job.id.cluster, job.id.proc or 0), reverse=True)
    return tuple(job.id for job in old[:max(0, counts.live - limits.least)])


# ---------------------------------------------------------------- what became of one


def ended_of(job: JobInfo, target: str, now: float) -> Ended:
    """An ended glide-in as far as the queue knows it."""
    one = Ended(str(job.id), job.name, target, job.submitted or 0.0, now, "failed", node=job.node)
    if job.state is State.REMOVED:
        return replace(one, kind="Removed", status=PoolError.status, message="somebody removed it from the queue",
                       hint="if nobody did: the site has a policy (SYSTEM_PERIODIC_REMOVE); ask there")
    if job.failure:
        return replace(one, kind=job.failure, status=job.status or VmjobError.status, message=job.reason, hint=job.hint)
    if job.state is State.HELD:
        return replace(one, kind=JobHeld.__name__, status=JobHeld.status, message=f"held: {job.reason}",
                       hint="the reason is the site's: ask there")
    return one


def judged(one: Ended, document: dict[str, Any], asked: bool) -> Ended:
    """``one`` with what its result.json tells, which fits the schema. ``asked``: jobs are idle in the pool now."""
    worked, failure = document.get("glidein") or {}, document["failure"]
    jobs, busy = int(worked.get("jobs", 0)), float(worked.get("busy_seconds", 0.0))
    one = replace(one, outcome=document["outcome"], kind="", status=document["status"], message="", hint="", jobs=jobs,
                  busy_seconds=busy, seconds=float(worked.get("seconds", 0.0)), node=one.node or document["host"])
    if failure:
        return replace(one, kind=failure["kind"], stage=failure["stage"], message=failure["message"],
                       hint=failure["hint"])
    if document["status"]:
        return replace(one, kind="ProgramFailed", message=f"it ended with status {document['status']}",
                       hint="see its logs")
    return replace(one, vain=asked and not (jobs or busy or worked.get("evicted")))


# ---------------------------------------------------------------- failures


def failed_tries(past: Sequence[Ended], fleet: Sequence[JobInfo], demand: Optional[Demand],
                 now: float) -> list[Ended]:
    """The tries that failed in a row, oldest first; of each the failure that came last. A try is one submission.

    A glide-in that worked excuses those that were submitted before it: it has run jobs and ended well, or it is in the
    pool since STEADY seconds. So does that the factory gave up: a person has seen it."""
    joined = dict(demand.joined) if demand else {}
    steady = [job.submitted for job in fleet if job.state is State.RUNNING and joined.get(job.name) and job.submitted
              and job.stage not in _LEAVING and job.started and now - job.started >= STEADY]
    worked = max([*steady, *(one.submitted for one in past if one.worked or one.outcome == STOPPED)], default=0.0)
    return _latest(one for one in past if one.kind and one.submitted > worked)


def bad_tries(past: Sequence[Ended], fleet: Sequence[JobInfo], demand: Demand, now: float) -> list[Ended]:
    """The failed ones, and those that ran no job although the pool asked, as long as it asks and no glide-in of ours
    has shown since that its jobs and ours match."""
    failed = failed_tries(past, fleet, demand, now)
    if not demand.requests or demand.busy:
        return failed
    ran = max((one.submitted for one in past if one.jobs or one.busy_seconds or one.outcome == STOPPED), default=0.0)
    return _latest([*failed, *(one for one in past if one.vain and one.submitted > ran)])


def _latest(every: Iterable[Ended]) -> list[Ended]:
    """The one of each submission that ended last."""
    tries: dict[str, Ended] = {}
    for one in sorted(every, key=lambda one: one.ended):
        tries.pop(one.submission, None)
        tries[one.submission] = one
    return list(tries.values())


def pause(failures: int, first: float) -> float:
    """Seconds to wait after so many failures in a row: ``first``, twice as long, … up to LONGEST_PAUSE."""
    if failures <= 0:
        return 0.0
    return float(min(first * 2 ** min(failures - 1, 20), max(first, LONGEST_PAUSE)))


def blocked_until(failed: Sequence[Ended], first: float) -> float:
    """Epoch seconds before which nothing is submitted."""
    return max(one.ended for one in failed) + pause(len(failed), first) if failed else 0.0


def tell(failed: Sequence[Ended]) -> str:
    """The failures in a row in a few words."""
    kinds = ", ".join(dict.fromkeys(one.kind or "no job ran" for one in failed))
    return f"the last try failed ({kinds})" if len(failed) == 1 else f"the last {len(failed)} tries failed ({kinds})"


def report(failed: Sequence[Ended], past: Sequence[Ended]) -> list[str]:
    """Why the factory ends, for people: a line for each kind of failure, with the nodes."""
    names = {one.submission for one in failed}
    every = [one for one in past if one.kind and one.submission in names]
    lines = []
    for kind, number in Counter(one.kind for one in every).most_common():
        same = [one for one in every if one.kind == kind]
        nodes = sorted({one.node for one in same if one.node})
        where = f" on {', '.join(nodes[:5])}{' …' if len(nodes) > 5 else ''}" if nodes else ""
        logs = next((one.logs for one in reversed(same) if one.logs), "")
        lines.append(f"{number} × {kind}{where}: {same[-1].message}{f' (logs: {logs})' if logs else ''}")
    return lines
