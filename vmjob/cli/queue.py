"""The verbs about jobs in a batch system: ``vmjob submit`` and all that comes after it."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.batch import targets
from vmjob.batch.jobs import Cluster, JobId, JobInfo, State, among, first_failure, parse_id
from vmjob.cli import report, sites_for, tables
from vmjob.cli.job import job_of
from vmjob.core.errors import JobError
from vmjob.core.pool_errors import JobHeld, JobsPending, JobUnknown
from vmjob.core.units import parse_duration
from vmjob.job.parameters import parameters
from vmjob.submit import submission

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor
    from vmjob.batch.description import Parameters

_POLL = 2.0  # seconds


def submit(args: argparse.Namespace) -> int:
    """``vmjob submit``."""
    if not args.job and not args.name and args.command:
        # a name is given to one submission at a time
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(args.command[0]).name).strip("-")[:40]
        args.name = f"{word or 'job'}-{secrets.token_hex(2)}"
    job, base = job_of(args)
    if args.to == targets.ANY:
        return sites_for.submit(args, job, base)
    sites_for.not_any(args)
    target = targets.choose(args.to)
    wanted = parameters_of(args)
    reporter = report.choose(json=args.json)
    if target.kind == "local":
        from vmjob.submit.local import run_here

        results = Path(args.results or f"{job.name}.out")
        statuses = run_here(job, base, wanted, results, reporter)
        if args.json:
            report.show(json.dumps({"target": "local", "name": job.name, "results": str(results),
                                    "statuses": statuses}))
        else:
            report.say(f"{statuses.count(0)} of {len(statuses)} jobs ended with 0; results in {results}/")
        return first_failure(statuses)
    if args.results:
        raise JobError("--results is for the target local", "other results are brought by: vmjob fetch ID -o DIR")
    done = submission.submit_job(job, base, target, wanted, reporter, args.carry_image)
    sites_for.tell(done, args.to, args.json)
    return 0


def parameters_of(args: argparse.Namespace) -> Parameters:
    """How many jobs, and what differs between them, as the options say."""
    return parameters(args.count, args.settings, Path(args.table) if args.table else None)


def status(args: argparse.Namespace) -> int:
    """``vmjob status``."""
    batch, ids = _open(args)
    clusters = batch.clusters(ids)
    if args.json:
        report.show(json.dumps([_document(cluster, ids) for cluster in clusters]))
        return 0
    if not clusters:
        report.say(f"no jobs of yours in the queue of {batch.target.name}; vmjob history shows those that have left it")
        return 0
    if ids:
        report.show(tables.jobs([job for cluster in clusters for job in _named(cluster, ids)],
                                sum(cluster.waiting for cluster in clusters if JobId(cluster.id) in ids)))
    else:
        report.show(tables.clusters(clusters))
    return 0


def wait(args: argparse.Namespace) -> int:
    """``vmjob wait``: until no job runs or may still run."""
    from vmjob.batch.follow import Following

    batch, ids = _open(args)
    limit = parse_duration(args.timeout, "--timeout") if args.timeout else None
    began, following = time.monotonic(), Following(batch, ids, report.say)
    with report.choose(json=args.json).bar("wait", None, "job") as bar:
        while True:
            following.poll()
            bar.set_total(len(following.jobs) + following.waiting)
            bar.set(following.ended)
            if following.over:
                break
            if limit is not None and time.monotonic() - began > limit:
                left = len(following.jobs) + following.waiting - following.ended
                raise JobsPending(f"{_count(left, 'job')} had not ended within {args.timeout}",
                                  "they go on: wait again, or see vmjob status")
            time.sleep(_POLL)
    if args.json:
        report.show(json.dumps([job.to_json() for job in following.jobs]))
    else:
        report.show(tables.jobs(following.jobs, 0))
    return _status_of(following.jobs, told=not args.json)


def _status_of(jobs: list[JobInfo], told: bool) -> int:
    held = [job for job in jobs if job.state is State.HELD]
    if held and told:
        report.say(f"{_count(len(held), 'job')} held, such as {held[0].id}: {held[0].reason}")
        report.say(f"→ mend it, then vmjob release {held[0].id.cluster}; or give it up: vmjob rm {held[0].id.cluster}")
    return first_failure([JobHeld.status if job.state in (State.HELD, State.REMOVED) else job.status for job in jobs])


def logs(args: argparse.Namespace) -> int:
    """``vmjob logs``."""
    batch, ids = _open(args)
    jobs = batch.jobs(ids)
    kind = "err" if args.stderr else "out"
    texts = []
    for job in jobs:
        text = _said(batch, job, kind)
        if args.json:
            texts.append({"id": str(job.id), "stdout" if kind == "out" else "stderr": text.decode(errors="replace")})
        else:
            if len(jobs) > 1:
                report.say(f"--- {job.id}")
            report.write_all(1, report.tame(text) if sys.stdout.isatty() else text)
    if args.json:
        report.show(json.dumps(texts))
    return 0


def _said(batch: Condor, job: JobInfo, kind: str) -> bytes:
    from vmjob.batch.condor import file_name

    if job.results:
        with tempfile.TemporaryDirectory(prefix="vmjob-") as folder:
            batch.bring([job], [kind], Path(folder))
            return (Path(folder) / file_name(kind, job.id)).read_bytes()
    if job.state in (State.RUNNING, State.SUSPENDED):
        from vmjob.batch.attach import tail

        return tail(batch.pool, job, kind)
    if job.fetched:
        report.say(f"{job.id} was fetched already: what it said is among its results")
        return b""
    report.say(f"{job.id} is {job.state.value} and has said nothing yet" + (f": {job.reason}" if job.reason else ""))
    return b""


def fetch(args: argparse.Namespace) -> int:
    """``vmjob fetch``: results of all that have ended; says which have not."""
    batch, ids = _open(args)
    clusters = batch.clusters(ids)
    found: list[submission.Fetched] = []
    pending = 0
    for cluster in clusters:
        folder = Path(args.out or f"{cluster.name}-{cluster.id}.out")
        if args.out and clusters[1:]:
            folder = folder / str(cluster.id)
        some, late = _fetch(batch, cluster, ids, folder, args)
        found += some
        pending += late
    _tell_fetched(found, pending, args.json)
    return first_failure([*(one.failure.status if one.failure else one.document["status"] for one in found),
                          JobsPending.status if pending else 0])


def _fetch(batch: Condor, cluster: Cluster, ids: list[JobId], folder: Path,
           args: argparse.Namespace) -> tuple[list[submission.Fetched], int]:
    """What came of one submission, and how many of its jobs have no results."""
    every = _named(cluster, ids)
    jobs = [job for job in every if not job.fetched]
    if every and not jobs and not cluster.waiting:
        raise JobUnknown(f"the results of {cluster.id} were fetched already", "they are where vmjob fetch put them")
    ready = [job for job in jobs if job.results]
    late = len(jobs) - len(ready) + (cluster.waiting if JobId(cluster.id) in ids else 0)
    found = submission.fetch(batch, ready, folder, report.choose(json=args.json), flat=cluster.total == 1,
                             keep=args.keep) if ready else []
    if found and not args.json:
        report.say(f"{cluster.id}: results of {_count(len(ready), 'job')} in {folder}/")
    if late and not args.json:
        report.say(f"{cluster.id}: {_count(late, 'job')} without results; see vmjob status {cluster.id}")
    return found, late


def _tell_fetched(found: list[submission.Fetched], pending: int, as_json: bool) -> None:
    good = [(str(one.job.id), one.document) for one in found if not one.failure]
    bad = [(str(one.job.id), one.failure) for one in found if one.failure]
    if as_json:
        report.show(json.dumps({
            "results": [{"id": number, "result": document} for number, document in good], "pending": pending,
            "refused": [{"id": number, "kind": failure.kind, "message": failure.message} for number, failure in bad]}))
        return
    if good:
        report.show(tables.results(good))
    for number, failure in bad:
        report.say(f"{number}: {failure.message}")
        report.say(f"→ {failure.hint}")


def remove(args: argparse.Namespace) -> int:
    """``vmjob rm``."""
    if not args.ids and not args.images:
        raise JobError("vmjob rm: which jobs?", "vmjob rm 42, or vmjob rm --images for the images that a target keeps")
    batch, ids = _open(args)
    count, unfetched = batch.remove(ids) if ids else (0, 0)
    images, needed = batch.remove_images() if args.images else (0, 0)
    if args.json:
        print(json.dumps({"removed": count, "unfetched": unfetched, "images": images}))
    else:
        print(f"removed {_count(count, 'job')}" + (f" and {_count(images, 'image')}" if args.images else "")
              + (f", and the results of {unfetched} that nobody had fetched" if unfetched else ""))
    if needed:
        report.say(f"{_count(needed, 'image')} stayed for jobs in the queue: see vmjob status")
    return 0


def release(args: argparse.Namespace) -> int:
    """``vmjob release``."""
    batch, ids = _open(args)
    batch.clusters(ids)
    count = batch.release(ids)
    print(json.dumps({"released": count}) if args.json else f"released {_count(count, 'job')}")
    if not count:
        report.say("none of them is held")
    return 0


def history(args: argparse.Namespace) -> int:
    """``vmjob history``."""
    batch, ids = _open(args)
    jobs = batch.history(ids, args.limit)
    if args.json:
        report.show(json.dumps([job.to_json() for job in jobs]))
    elif jobs:
        report.show(tables.jobs(jobs, 0))
    else:
        report.say(f"no job of yours has left the queue of {batch.target.name} yet")
    return 0


def console(args: argparse.Namespace) -> int:
    """``vmjob console``."""
    return _attach(args, "console")


def ssh(args: argparse.Namespace) -> int:
    """``vmjob ssh``."""
    return _attach(args, "shell")


def _attach(args: argparse.Namespace, what: str) -> int:
    from vmjob.batch.attach import attach

    one = parse_id(args.id)
    batch = _batch(args)
    jobs = batch.jobs([one])
    if len(jobs) != 1:
        raise JobError(f"{one} has {len(jobs)} jobs", f"say which: {one}.0")
    return attach(batch.pool, jobs[0], what)


def _open(args: argparse.Namespace) -> tuple[Condor, list[JobId]]:
    return _batch(args), [parse_id(text) for text in args.ids]


def _batch(args: argparse.Namespace) -> Condor:
    from vmjob.batch.condor import Condor

    target = targets.choose(args.to)
    if target.kind == "local":
        raise JobError("the target local has no queue: vmjob submit --to local returns with the results",
                       "name another target: --to")
    return Condor(target)


def _named(cluster: Cluster, ids: list[JobId]) -> list[JobInfo]:
    return [job for job in cluster.jobs if among(ids, job.id)]


def _document(cluster: Cluster, ids: list[JobId]) -> dict[str, object]:
    return {"id": str(cluster.id), "name": cluster.name, "total": cluster.total, "waiting": cluster.waiting,
            "jobs": [job.to_json() for job in _named(cluster, ids)]}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


