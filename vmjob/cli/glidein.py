"""``vmjob glidein keep`` and ``vmjob glidein status``: options to Settings, cycles to lines or JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli import report
from vmjob.cli.options import common, later, target_option, verb
from vmjob.cli.verbs import VERBS
from vmjob.core.errors import Interrupted, JobError
from vmjob.core.units import counted, format_duration, parse_duration

if TYPE_CHECKING:
    from vmjob.glidein.factory import Cycle, Settings
    from vmjob.glidein.history import Ended
    from vmjob.glidein.how_many import Limits

_KEEP_EXAMPLES = """\
examples:
  vmjob glidein keep worker.yaml --pool cm.vo.example.org --to condor-ce://ce.example.org --max 50
  vmjob glidein keep worker.yaml --to clemson --min 2 --max 50 --constraint 'Owner == "ada"'
  vmjob glidein keep worker.yaml --to clemson --max 50 --once --dry-run    what would it do now?
  vmjob glidein keep worker.yaml --to clemson --drain                      remove those that wait

worker.yaml is a job file with the key glidein: (vmjob schema job). As many glide-ins are kept at the target as the jobs
that are idle in the VO's pool need, within the limits. What became of each stands in NAME.glideins/glideins.jsonl, with
the logs of those that failed beside it. All else is asked of the two queues: a factory that is ended, in whatever way,
leaves its glide-ins at work, and goes on where it was when it is started again.
"""


def add_verbs(verbs: Any) -> None:
    """glidein keep, glidein status."""
    top = verb(verbs, "glidein", VERBS["glidein"].help,
                "example:\n  vmjob glidein keep --help\n", None)
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    keep = verb(actions, "keep", "keep as many glide-ins at a target as the VO's pool asks for", _KEEP_EXAMPLES,
                 later("glidein", "keep"))
    _which(keep)
    keep.add_argument("--min", type=int, default=0, metavar="N", help="at least so many, jobs or not (default: 0)")
    keep.add_argument("--max", type=int, metavar="N", help="at most so many at the target")
    keep.add_argument("--most-at-once", type=int, default=10, metavar="N", help="new ones a cycle (default: 10)")
    keep.add_argument("--every", default="30s", metavar="TIME", help="length of a cycle (default: 30s)")
    keep.add_argument("--backoff", default="1m", metavar="TIME", help="nothing is submitted for so long after a "
                      "failure, then twice as long, up to half an hour (default: 1m)")
    keep.add_argument("--give-up", type=int, default=10, metavar="N",
                      help="end after so many failed tries in a row (default: 10)")
    keep.add_argument("--once", action="store_true", help="one cycle, for cron")
    keep.add_argument("--dry-run", action="store_true", help="one cycle that only says what it would do")
    keep.add_argument("--drain", action="store_true", help="submit nothing, remove those that wait, and end")

    status = verb(actions, "status", "show what the pool asks for and what a factory's glide-ins do",
                   "example:\n  vmjob glidein status worker.yaml --to clemson\n", later("glidein", "status"))
    _which(status)


def _which(one: argparse.ArgumentParser) -> None:
    one.add_argument("job", metavar="JOB.yaml", help="job file with the key glidein:")
    one.add_argument("--pool", metavar="HOST[:PORT]",
                     help="collector of the VO's pool (default: the job's glidein.pool)")
    target_option(one)
    one.add_argument("--schedd", default="", metavar="NAME", help="count the jobs of this schedd alone (default: of "
                     "all that the pool's collector knows)")
    one.add_argument("--constraint", default="", metavar="EXPR", help="ClassAd expression: count these jobs alone")
    one.add_argument("--results", metavar="DIR", help="folder for the logbook and logs (default: NAME.glideins)")
    common(one)


def keep(args: argparse.Namespace) -> int:
    """``vmjob glidein keep``: until it is stopped, or gives up."""
    from vmjob.glidein.factory import Factory
    from vmjob.job.resolve import token_of

    if args.max is None and not args.drain:
        raise JobError("how many glide-ins at most?", "--max N")
    this = _settings(args, _limits(args))
    if not args.drain:
        token_of(this.job, this.base)  # one that cannot do is told now, and not when jobs ask for glide-ins
    factory = Factory(this, report.choose(json=args.json))
    if args.dry_run:
        return _would(factory.look(), args)
    lines = _Lines(this)
    try:
        for cycle in factory.cycles():
            if args.json:
                report.show(json.dumps(cycle.to_json()))
            else:
                lines.tell(cycle)
    except Interrupted as stopped:
        if not args.json:
            report.say(f"{stopped.message}: the factory ends; {_go_on(lines.live, args)}")
    else:
        if args.drain and not args.json:
            report.say(_go_on(lines.live, args))
    return 0


def status(args: argparse.Namespace) -> int:
    """``vmjob glidein status``."""
    from vmjob.glidein.factory import Factory
    from vmjob.glidein.history import Logbook
    from vmjob.glidein.how_many import Limits

    this = _settings(args, Limits(most=0))
    cycle = Factory(this, report.choose(json=args.json)).look()
    past = Logbook(this.logs, this.target.name).read()
    if args.json:
        document = {key: value for key, value in cycle.to_json().items() if key in ("time", "asked", "glideins")}
        ended = [one for one in past if one.submission]
        report.show(json.dumps({**document, "ended": len(ended), "failed": sum(bool(one.kind) for one in ended),
                                "jobs": sum(one.jobs for one in ended)}))
        return 0
    report.show(_table(cycle, this, past))
    return 0


def _settings(args: argparse.Namespace, limits: Limits) -> Settings:
    from vmjob.batch import targets
    from vmjob.glidein.factory import Settings, wants_of
    from vmjob.job.file import load_job

    path = Path(args.job)
    job = load_job(path)
    if job.glidein is None:
        raise JobError(f"{path}: this job is no glide-in", "it needs the key glidein: in place of command or script")
    if args.pool:
        job = replace(job, glidein=replace(job.glidein, pool=args.pool))
    target = targets.choose(args.to)
    if target.kind == "local":
        raise JobError("the target local has no queue that glide-ins could be kept in", "name another target: --to")
    wants = wants_of(job, args.schedd, args.constraint)
    return Settings(job, path.parent, target, replace(limits, cpus=wants.cpus),
                    Path(args.results or f"{job.name}.glideins"), wants, once=getattr(args, "once", False),
                    drain=getattr(args, "drain", False))


def _limits(args: argparse.Namespace) -> Limits:
    from vmjob.batch.description import MOST_TOKENS
    from vmjob.glidein.how_many import Limits

    limits = Limits(
        most=_number(args.max or 0, "--max", 0), least=_number(args.min, "--min", 0), cron=args.once,
        at_once=_number(args.most_at_once, "--most-at-once", 1, MOST_TOKENS),
        give_up=_number(args.give_up, "--give-up", 1),
        every=parse_duration(args.every, "--every"), backoff=parse_duration(args.backoff, "--backoff"))
    if limits.least > limits.most and not args.drain:
        raise JobError(f"--min {args.min} is more than --max {args.max}", "never more than --max are submitted")
    return limits


def _number(value: int, option: str, least: int, most: Optional[int] = None) -> int:
    if value < least:
        raise JobError(f"{option} {value}: that is too few", f"{option} {least} or more")
    if most is not None and value > most:
        raise JobError(f"{option} {value}: that is too many", f"{option} {most} or fewer")
    return value


def _would(cycle: Cycle, args: argparse.Namespace) -> int:
    if args.json:
        report.show(json.dumps(cycle.to_json()))
        return 0
    report.show(f"{_asks(cycle)}; {_counts(cycle)}")
    report.show(f"would submit {cycle.plan.new}" + (f" ({cycle.plan.why})" if cycle.plan.why else ""))
    return 0


# ---------------------------------------------------------------- for people


class _Lines:
    """Says a line when something has changed."""

    def __init__(self, this: Settings) -> None:
        self._this = this
        self._last = ""
        self._trouble = ""
        self.live = 0

    def tell(self, cycle: Cycle) -> None:
        self.live = cycle.counts.live if cycle.demand or not cycle.trouble else self.live
        for one in cycle.ended:
            self._say(cycle, _ended(one))
        if cycle.removed:
            count = len(cycle.removed)
            self._say(cycle, f"removed {count} that waited" + ("" if self._this.drain else ", as nobody needs them"))
        if cycle.trouble:
            if cycle.trouble.message != self._trouble:
                self._say(cycle, f"{cycle.trouble.message}; trying again")
        elif self._trouble:
            self._say(cycle, "it goes on")
        self._trouble = cycle.trouble.message if cycle.trouble else ""
        if cycle.demand and not cycle.stop:
            self._state(cycle)
        for line in cycle.report:
            self._say(cycle, line)

    def _state(self, cycle: Cycle) -> None:
        why = cycle.plan.why
        state = f"{_asks(cycle)}; {_counts(cycle)}"
        new = f"; submitted {cycle.submitted}: {cycle.name}" if cycle.submitted else ""
        mark = state + why.rpartition(":")[2]  # seconds that count down are no change
        if mark != self._last or new:
            self._say(cycle, state + new + (f" ({why})" if why else ""))
        self._last = mark

    def _say(self, cycle: Cycle, text: str) -> None:
        report.say(f"{time.strftime('%H:%M:%S', time.localtime(cycle.time))} {text}")


def _asks(cycle: Cycle) -> str:
    demand = cycle.demand
    if demand is None:
        return "the pool does not answer"
    silent = f" (no answer from {', '.join(demand.silent)})" if demand.silent else ""
    free = f", {sum(demand.free)} are free" if demand.free else ""
    asked = f"{counted(demand.jobs, 'idle job')}, {counted(demand.cpus, 'CPU')}" if demand.jobs else "no idle jobs"
    return f"pool: {asked}{free}{silent}"


def _counts(cycle: Cycle) -> str:
    counts = cycle.counts
    parts = [f"{number} {word}" for word, number in (
        ("waiting", counts.waiting), ("starting", counts.starting), ("in the pool", counts.working),
        ("leaving", counts.leaving)) if number]
    return "glide-ins: " + (", ".join(parts) or "none")


def _ended(one: Ended) -> str:
    logs = f" (logs: {one.logs})" if one.logs else ""
    if one.kind:
        where = f" on {one.node}" if one.node else ""
        return f"{one.id} failed{where}: {one.kind}: {one.message}{logs}"
    vain = ", though jobs are idle: do they and its START match? (condor_q -better-analyze)" if one.vain else ""
    return (f"{one.id} ended: {counted(one.jobs, 'job')}, busy {format_duration(one.busy_seconds)}, on {one.node}"
            f"{vain}{logs}")


def _go_on(live: int, args: argparse.Namespace) -> str:
    if not live:
        return "it has no glide-ins at the target"
    if args.drain:
        return f"{counted(live, 'glide-in')} that run go on until they end by themselves; vmjob rm ends them at once"
    return f"{counted(live, 'glide-in')} go on; the option --drain removes those that wait, vmjob rm any"


def _table(cycle: Cycle, this: Settings, past: list[Ended]) -> str:
    from vmjob.cli import tables
    from vmjob.glidein.how_many import bad_tries, tell

    demand, counts = cycle.demand, cycle.counts
    assert demand and this.job.glidein
    ended = [one for one in past if one.submission]
    failed = [one for one in ended if one.kind]
    text = tables.table(
        ["POOL", "IDLE JOBS", "CPUS", "FREE CPUS", "TARGET", "WAITING", "STARTING", "IN POOL", "LEAVING", "ENDED",
         "FAILED", "JOBS RUN"],
        [[this.job.glidein.pool, *map(str, (demand.jobs, demand.cpus, sum(demand.free))), this.target.name,
          *map(str, (counts.waiting, counts.starting, counts.working, counts.leaving, len(ended), len(failed),
                     sum(one.jobs for one in ended)))]])
    last: Optional[Ended] = failed[-1] if failed else None
    tries = bad_tries(past, (), demand, cycle.time)
    notes = [tell(tries)] if tries else []
    notes += [_ended(one) for one in tries[-1:] if one.vain]
    if last:
        notes.append(f"last failure: {_ended(last)}")
    if demand.large:
        notes.append(f"for {counted(demand.large, 'idle job')} one glide-in is too small "
                     f"({counted(this.limits.cpus, 'CPU')})")
    return "\n".join([text, *notes])
