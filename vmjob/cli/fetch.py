"""``vmjob fetch``: results of ended jobs come here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.batch.jobs import Cluster, JobId, first_failure
from vmjob.cli import report, tables
from vmjob.cli.jobargs import named_of, open_target
from vmjob.core.pool_errors import JobsPending, JobUnknown
from vmjob.core.units import counted
from vmjob.submit import results

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor


def fetch(args: argparse.Namespace) -> int:
    """``vmjob fetch``: results of all that have ended; says which have not."""
    batch, ids = open_target(args)
    clusters = batch.clusters(ids)
    found: list[results.Fetched] = []
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
           args: argparse.Namespace) -> tuple[list[results.Fetched], int]:
    """What came of one submission, and how many of its jobs have no results."""
    every = named_of(cluster, ids)
    jobs = [job for job in every if not job.fetched]
    if every and not jobs and not cluster.waiting:
        raise JobUnknown(f"the results of {cluster.id} were fetched already", "they are where vmjob fetch put them")
    ready = [job for job in jobs if job.results]
    late = len(jobs) - len(ready) + (cluster.waiting if JobId(cluster.id) in ids else 0)
    found = results.fetch(batch, ready, folder, report.choose(json=args.json), flat=cluster.total == 1,
                             keep=args.keep) if ready else []
    if found and not args.json:
        report.say(f"{cluster.id}: results of {counted(len(ready), 'job')} in {folder}/")
    if late and not args.json:
        report.say(f"{cluster.id}: {counted(late, 'job')} without results; see vmjob status {cluster.id}")
    return found, late


def _tell_fetched(found: list[results.Fetched], pending: int, as_json: bool) -> None:
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
