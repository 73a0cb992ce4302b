"""``vmjob glidein keep``: the loop over the policy of how_many.py. What it knows is in the queues and in the logbook,
so that one which is killed and started again goes on where it was; what is kept in memory only makes it a little wiser.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from vmjob.batch.condor import Condor
from vmjob.batch.jobs import JobId, JobInfo, State
from vmjob.batch.targets import Target
from vmjob.core import config
from vmjob.core.errors import Interrupted, JobError, OutputRefused, VmjobError
from vmjob.core.model import Job
from vmjob.core.pool_errors import JobUnknown, PoolError, TransferFailed
from vmjob.core.progress import Reporter
from vmjob.glidein.demand import FACTORY, SUBMISSION, Demand, Wants, ask, fleet, pool_at
from vmjob.glidein.history import STOPPED, Ended, Logbook, alone
from vmjob.glidein.how_many import Counts, Limits, Plan, count, decide, ended_of, failed_tries, judged, pause, report
from vmjob.job.parameters import Parameters
from vmjob.submit import results, submission
from vmjob.submit.request import memory_of, request_of

_PATIENCE = 300  # seconds after its end for which results that do not come are asked for again
_LONGEST_NAME = 56  # "-g" and six digits come to it


@dataclass(frozen=True)
class Settings:
    """``job``: a glide-in, with the pool that counts; ``base``: the folder its files are relative to; ``logs``: the
    logbook's folder; ``once``: one cycle (of cron); ``drain``: submit nothing, remove those that wait."""

    job: Job
    base: Path
    target: Target
    limits: Limits
    logs: Path
    wants: Wants
    once: bool = False
    drain: bool = False


@dataclass(frozen=True)
class Cycle:
    """What one cycle has seen and done. ``trouble``: what kept it from looking or from submitting, for now; ``stop``:
    why the factory ends, told in ``report``; ``pause``: seconds until the next one."""

    time: float
    counts: Counts
    demand: Optional[Demand] = None
    plan: Plan = field(default_factory=Plan)
    name: str = ""
    submitted: int = 0
    removed: tuple[JobId, ...] = ()
    ended: tuple[Ended, ...] = ()
    trouble: Optional[VmjobError] = None
    stop: Optional[VmjobError] = None
    report: tuple[str, ...] = ()
    pause: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        from dataclasses import asdict

        demand = self.demand
        return {
            "time": round(self.time, 3), "trouble": _failure(self.trouble), "stop": _failure(self.stop),
            "asked": demand and {"jobs": demand.jobs, "cpus": demand.cpus, "too_large": demand.large,
                                 "free_cpus": sum(demand.free), "silent": list(demand.silent)},
            "glideins": {**asdict(self.counts), "live": self.counts.live}, "wanted": self.plan.new,
            "why": self.plan.why, "submission": self.name, "submitted": self.submitted,
            "removed": [str(one) for one in self.removed], "ended": [asdict(one) for one in self.ended]}


def _failure(error: Optional[VmjobError]) -> Optional[dict[str, Any]]:
    return {"kind": error.kind, "status": error.status, "message": error.message, "hint": error.hint} if error else None


def wants_of(job: Job, schedd: str = "", constraint: str = "") -> Wants:
    """What the pool is asked: how large one of these glide-ins is stands in the job and its image. Raises ImageMissing,
    JobError."""
    from vmjob.image.store.images import Store

    if len(job.name) > _LONGEST_NAME:
        raise JobError(f"the name '{job.name}' is too long for a factory: its glide-ins get names made from it",
                       f"name: at most {_LONGEST_NAME} characters")
    manifest, _ = Store(config.store_dir()).resolve(job.image)
    cpus = request_of(job, manifest).cpus
    cpus = job.glidein.slots(cpus) if job.glidein else cpus
    return Wants(job.name, cpus, memory_of(job, manifest), job.resources.disk or 2**30, schedd, constraint)


class Factory:
    """Raises what a cycle ends with for good; the rest is told in Cycles."""

    def __init__(self, settings: Settings, reporter: Reporter) -> None:
        self._it, self._reporter = settings, reporter
        self._book = Logbook(settings.logs, settings.target.name)
        self._quiet = 0
        self._troubles = 0
        self._begun = False
        self._seen: set[JobId] = set()
        self._ours: set[JobId] = set()  # that we have removed

    def look(self) -> Cycle:
        """What there is, and what would be done; nothing is. Raises what asking does."""
        now, demand, there = time.time(), self._ask(), fleet(Condor(self._it.target), self._it.job.name)
        plan = decide(self._it.limits, demand, there, self._book.read(), now)
        return Cycle(now, count(there, demand), demand, plan)

    def cycles(self) -> Iterator[Cycle]:
        """One cycle after the other, with pauses between them. Raises NameTaken, and a Cycle's ``stop`` after it."""
        target = self._it.target
        with alone(self._it.job.name, target.name, f"{target.place}|{target.element}"):
            while True:
                cycle = self._cycle()
                yield cycle
                if cycle.stop:
                    raise cycle.stop
                if self._it.once or self._it.drain:
                    if cycle.trouble:
                        raise cycle.trouble
                    return
                time.sleep(cycle.pause)

    # ------------------------------------------------------------ one cycle

    def _cycle(self) -> Cycle:
        now = time.time()
        cycle = Cycle(now, Counts())
        try:
            demand, wrong = (None, None) if self._it.drain else self._asked()
            batch = Condor(self._it.target)  # again each time: a schedd that was restarted has another address
            there = fleet(batch, self._it.job.name)
            ended = self._collect(batch, there, demand, now)
            cycle = replace(cycle, counts=count(there, demand), demand=demand, ended=ended, trouble=wrong)
            cycle = self._verdict(cycle, there)
            if not cycle.stop and (demand or self._it.drain):
                cycle = self._act(batch, cycle, there)
            batch.sweep()
        except Interrupted:
            raise
        except VmjobError as error:
            cycle = self._in_trouble(cycle, error)
        self._troubles = self._troubles + 1 if cycle.trouble else 0
        self._begun = self._begun or not cycle.trouble
        limits = self._it.limits
        return replace(cycle, pause=max(limits.every, pause(self._troubles, limits.backoff)))

    def _in_trouble(self, cycle: Cycle, error: VmjobError) -> Cycle:
        """What may pass is waited for; at the start a pool that refuses us does so for good."""
        if not error.transient and not (isinstance(error, PoolError) and self._begun):
            return replace(cycle, stop=error)
        return replace(cycle, trouble=error)

    def _asked(self) -> tuple[Optional[Demand], Optional[VmjobError]]:
        """What ended at the target is taken care of although the VO's pool is away."""
        try:
            return self._ask(), None
        except PoolError as error:
            if not error.transient and not self._begun:
                raise
            return None, error

    def _ask(self) -> Demand:
        glidein = self._it.job.glidein
        assert glidein
        return ask(pool_at(glidein.pool), self._it.wants)

    def _act(self, batch: Condor, cycle: Cycle, there: Sequence[JobInfo]) -> Cycle:
        """Submit or remove, as the policy says."""
        if self._it.drain:
            remove = tuple(job.id for job in there if job.state is State.IDLE)
            self._remove(batch, remove)
            return replace(cycle, removed=remove,
                           counts=replace(cycle.counts, waiting=cycle.counts.waiting - len(remove)))
        assert cycle.demand
        # cron's factory has no memory: what waits since two cycles has to do
        nothing = not cycle.demand.requests
        self._quiet = self._quiet + (2 if self._it.once else 1) if nothing else 0
        plan = decide(self._it.limits, cycle.demand, there, self._book.read(), cycle.time, self._quiet)
        cycle = replace(cycle, plan=plan)
        try:
            self._remove(batch, plan.remove)
            counts = replace(cycle.counts, waiting=cycle.counts.waiting - len(plan.remove) + plan.new)
            name = self._submit(plan.new) if plan.new else ""
        except Interrupted:
            raise
        except VmjobError as error:
            return self._in_trouble(cycle, error)
        return replace(cycle, removed=plan.remove, name=name, submitted=plan.new, counts=counts)

    def _submit(self, number: int) -> str:
        """One submission of so many glide-ins; its name."""
        job, name = self._it.job, f"{self._it.job.name}-g{secrets.token_hex(3)}"
        assert job.glidein
        ours = ((FACTORY, job.name), (SUBMISSION, name))
        others = tuple(one for one in job.glidein.attributes if one[0] not in dict(ours))
        one = replace(job, name=name, glidein=replace(job.glidein, attributes=(*others, *ours)))
        submission.submit_job(one, self._it.base, self._it.target, Parameters(number), self._reporter)
        return name

    def _remove(self, batch: Condor, ids: Sequence[JobId]) -> None:
        if ids:
            self._ours.update(ids)
            with suppress(JobUnknown):  # gone already
                batch.remove(ids)

    # ------------------------------------------------------------ those that have ended

    def _collect(self, batch: Condor, there: Sequence[JobInfo], demand: Optional[Demand],
                 now: float) -> tuple[Ended, ...]:
        """Take the results of those that have ended, write them into the logbook, and clear the target's queue."""
        known = {(one.id, one.submission) for one in self._book.read()}
        found: list[Ended] = []
        left = [job for job in there if job.state in (State.DONE, State.HELD)]
        for job in [*left, *self._vanished(batch, there)]:
            one = self._end_of(batch, job, demand, now)
            if one is None:
                continue
            if (one.id, one.submission) not in known:  # else we were killed after this line
                self._book.add(one)
                found.append(one)
            if job.state is State.DONE:
                batch.fetched([job])
            elif job.state is State.HELD:
                self._remove(batch, [job.id])
            if not (one.kind or one.vain):
                self._book.tidy([self._it.logs / one.id])
        if found:
            self._book.tidy([])
        self._seen = {job.id for job in there if job not in left} - self._ours
        return tuple(found)

    def _vanished(self, batch: Condor, there: Sequence[JobInfo]) -> list[JobInfo]:
        """Those that left the queue without us: somebody has removed them."""
        gone = sorted(self._seen - {job.id for job in there}, key=str)
        past = batch.history(gone, len(gone)) if gone else []
        return [job for job in past if job.state is State.REMOVED and not job.fetched]

    def _end_of(self, batch: Condor, job: JobInfo, demand: Optional[Demand], now: float) -> Optional[Ended]:
        """None: not now."""
        one = ended_of(job, self._it.target.name, now)
        if not job.results:
            return one
        try:
            got, = results.fetch(batch, [job], self._book.folder_of(one.id), Reporter(), flat=True, keep=True)
            failure = got.failure
            if failure is None:
                one = judged(one, got.document, bool(demand and demand.requests))
                return replace(one, logs=str(self._it.logs / one.id)) if one.kind or one.vain else one
        except TransferFailed as error:
            if job.ended and now - job.ended < _PATIENCE:
                return None
            failure = error
        except (ValueError, OverflowError, TypeError) as strange:
            failure = OutputRefused(f"its result.json makes no sense: {strange}", "its node or its guest made it up")
        # what the job's ad says is better than nothing
        return one if one.kind else replace(one, kind=failure.kind, status=failure.status, message=failure.message,
                                            hint=failure.hint)

    def _verdict(self, cycle: Cycle, there: Sequence[JobInfo]) -> Cycle:
        """Whether to go on, after what has ended in this cycle."""
        past = self._book.read()
        failed = failed_tries(past, there, cycle.demand, cycle.time)
        gave_up = max((one.submitted for one in past if one.outcome == STOPPED), default=0.0)
        fix = next((one for one in reversed(cycle.ended) if one.fixable and one.submitted > gave_up), None)
        last = fix or (failed[-1] if failed else None)
        if self._it.drain or last is None or not (fix or (cycle.ended and len(failed) >= self._it.limits.give_up)):
            return cycle
        why = "as waiting changes nothing" if fix else f"after {len(failed)} failed tries in a row"
        lines = report([fix] if fix else failed, past)
        # by the target's clock
        newest = max(*(job.submitted or 0.0 for job in there), *(one.submitted for one in past), 0.0)
        self._book.add(Ended("", "", self._it.target.name, newest, cycle.time, STOPPED))
        go_on = f"; {cycle.counts.live} glide-ins go on until they end by themselves" if cycle.counts.live else ""
        text = f"the factory {self._it.job.name} ends, {why}: {last.kind}: {last.message}{go_on}"
        return replace(cycle, stop=last.error(text, last.hint), report=tuple(lines))
