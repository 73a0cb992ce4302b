"""The verbs about jobs in a batch system: ``vmjob submit`` and all that comes after it."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob import submission
from vmjob.batch import targets
from vmjob.batch.jobs import ENDED, Cluster, JobId, JobInfo, State, parse_id
from vmjob.cli import report, tables
from vmjob.cli.jobs import job_of
from vmjob.errors import JobError, JobHeld, JobUnknown
from vmjob.parameters import parameters
from vmjob.units import parse_duration

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
    target = targets.choose(args.to)
    wanted = parameters_of(args)
    reporter = report.choose(json=args.json)
    if target.kind == "local":
        from vmjob.local import run_here

        results = Path(args.results or f"{job.name}.out")
        statuses = run_here(job, base, wanted, results, reporter)
        worst = next((status for status in statuses if status), 0)
        if args.json:
            report.show(json.dumps({"target": "local", "name": job.name, "results": str(results),
                                    "statuses": statuses}))
        else:
            report.say(f"{statuses.count(0)} of {len(statuses)} jobs ended with 0; results in {results}/")
        return worst
    if args.results:
        raise JobError("--results is for the target local", "other results are brought by: vmjob fetch ID -o DIR")
    done = submission.submit_job(job, base, target, wanted, reporter)
    if args.json:
        print(json.dumps({"id": str(done.cluster), "jobs": done.jobs, "name": done.name, "target": done.target}))
        return 0
    print(f"{done.cluster}: {_count(done.jobs, 'job')} named {done.name} at {done.target}")
    to = f" --to {args.to}" if args.to else ""
    report.say(f"next: vmjob wait{to} {done.cluster} && vmjob fetch{to} {done.cluster}")
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
                                sum(cluster.waiting for cluster in clusters)))
    else:
        report.show(tables.clusters(clusters))
    return 0


def wait(args: argparse.Namespace) -> int:
    """``vmjob wait``: until no job runs or may still run. A held job has ended as far as waiting goes."""
    batch, ids = _open(args)
    limit = parse_duration(args.timeout, "--timeout") if args.timeout else None
    began = time.monotonic()
    last: dict[JobId, JobInfo] = {}
    with report.choose(json=args.json).bar("wait", None, "job") as bar:
        while True:
            clusters = _still_there(batch, ids)
            now = {job.id: job for cluster in clusters for job in _named(cluster, ids)}
            gone = [job for job in batch.history([i for i in last if i not in now], len(last))
                    if job.id in last] if set(last) - set(now) else []
            last.update({**{job.id: job for job in gone}, **now})
            waiting = sum(cluster.waiting for cluster in clusters)
            ended = [job for job in last.values() if job.state in ENDED]
            bar.set_total(len(last) + waiting)
            bar.set(len(ended))
            if len(ended) == len(last) and not waiting:
                break
            if limit is not None and time.monotonic() - began > limit:
                raise JobUnknown(f"{len(last) + waiting - len(ended)} jobs have not ended within {args.timeout}",
                                 "they go on: wait again, or see vmjob status")
            time.sleep(_POLL)
    jobs = sorted(last.values(), key=lambda job: (job.id.cluster, job.id.proc or 0))
    if args.json:
        report.show(json.dumps([job.to_json() for job in jobs]))
    else:
        report.show(tables.jobs(jobs, 0))
    return _status_of(jobs, told=not args.json)


def _still_there(batch: Condor, ids: list[JobId]) -> list[Cluster]:
    """Of all ids those that have not left the queue."""
    try:
        return batch.clusters(ids)
    except JobUnknown:
        past = batch.history(ids, 100_000)
        unknown = [one for one in ids if not any(one.covers(job.id) for job in past)]
        left = []
        for one in ids:
            try:
                left += batch.clusters([one])
            except JobUnknown:
                if one in unknown:
                    raise
        extra = [job for job in past if not any(job.id == j.id for c in left for j in c.jobs)]
        grouped: dict[int, list[JobInfo]] = {}
        for job in extra:
            grouped.setdefault(job.id.cluster, []).append(job)
        return left + [Cluster(number, jobs[0].name, len(jobs), 0, tuple(jobs)) for number, jobs in grouped.items()]


def _status_of(jobs: list[JobInfo], told: bool) -> int:
    for job in jobs:
        if job.state is State.HELD:
            if told:
                report.say(f"{job.id} is held: {job.reason}")
                report.say(f"→ mend it, then vmjob release {job.id}; or give it up: vmjob rm {job.id}")
            return JobHeld.status
        if job.state is State.REMOVED:
            return JobHeld.status
        if job.status:
            return job.status
    return 0


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
            report.write_all(1, text)
    if args.json:
        report.show(json.dumps(texts))
    return 0


def _said(batch: Condor, job: JobInfo, kind: str) -> bytes:
    from vmjob.batch.condor import file_name, has_results

    if has_results(job):
        with tempfile.TemporaryDirectory(prefix="vmjob-") as folder:
            batch.bring([job], [kind], Path(folder))
            return (Path(folder) / file_name(kind, job.id)).read_bytes()
    if job.state in (State.RUNNING, State.SUSPENDED):
        from vmjob.batch.attach import tail

        return tail(batch.pool, job.id, kind)
    report.say(f"{job.id} is {job.state.value} and has said nothing yet" + (f": {job.reason}" if job.reason else ""))
    return b""


def fetch(args: argparse.Namespace) -> int:
    """``vmjob fetch``: results of all that have ended; says which have not."""
    from vmjob.batch.condor import has_results

    batch, ids = _open(args)
    clusters = batch.clusters(ids)
    documents = []
    for cluster in clusters:
        jobs = _named(cluster, ids)
        ready = [job for job in jobs if has_results(job)]
        folder = Path(args.out or f"{cluster.name}.out")
        if args.out and len(clusters) > 1:
            folder = folder / str(cluster.id)
        if ready:
            documents += submission.fetch(batch, ready, folder, report.choose(json=args.json), flat=cluster.total == 1,
                                          keep=args.keep)
            if not args.json:
                report.say(f"{cluster.id}: results of {_count(len(ready), 'job')} in {folder}/")
        late = len(jobs) + cluster.waiting - len(ready)
        if late and not args.json:
            report.say(f"{cluster.id}: {_count(late, 'job')} without results yet; see vmjob status {cluster.id}")
    if args.json:
        report.show(json.dumps(documents))
    elif documents:
        report.show(tables.results(documents))
    return next((document["status"] for document in documents if document["status"]), 0)


def remove(args: argparse.Namespace) -> int:
    """``vmjob rm``."""
    if not args.ids and not args.images:
        raise JobError("vmjob rm: which jobs?", "vmjob rm 42, or vmjob rm --images for the images that a target keeps")
    batch, ids = _open(args)
    count = batch.remove(ids) if ids else 0
    images, needed = batch.remove_images() if args.images else (0, 0)
    if args.json:
        print(json.dumps({"removed": count, "images": images}))
    else:
        print(f"removed {_count(count, 'job')}" + (f" and {_count(images, 'image')}" if args.images else ""))
    if needed:
        report.say(f"{_count(needed, 'image')} stayed, as jobs in the queue need it: see vmjob status")
    return 0


def release(args: argparse.Namespace) -> int:
    """``vmjob release``."""
    batch, ids = _open(args)
    batch.clusters(ids)
    count = batch.release(ids)
    print(json.dumps({"released": count}) if args.json else f"released {_count(count, 'job')}")
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
        raise JobError(f"{one} are {len(jobs)} jobs", f"say which: {one}.0")
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
    return [job for job in cluster.jobs if not ids or any(one.covers(job.id) for one in ids)]


def _document(cluster: Cluster, ids: list[JobId]) -> dict[str, object]:
    return {"id": str(cluster.id), "name": cluster.name, "total": cluster.total, "waiting": cluster.waiting,
            "jobs": [job.to_json() for job in _named(cluster, ids)]}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


