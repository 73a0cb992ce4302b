"""``vmjob logs``, ``console`` and ``ssh``: what a job says, and a look into its guest."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.batch.jobs import JobInfo, State, parse_id
from vmjob.cli import report
from vmjob.cli.jobargs import batch_of, open_target
from vmjob.core.errors import JobError

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor


def logs(args: argparse.Namespace) -> int:
    """``vmjob logs``."""
    batch, ids = open_target(args)
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


def console(args: argparse.Namespace) -> int:
    """``vmjob console``."""
    return _attach(args, "console")


def ssh(args: argparse.Namespace) -> int:
    """``vmjob ssh``."""
    return _attach(args, "shell")


def _attach(args: argparse.Namespace, what: str) -> int:
    from vmjob.batch.attach import attach

    one = parse_id(args.id)
    batch = batch_of(args)
    jobs = batch.jobs([one])
    if len(jobs) != 1:
        raise JobError(f"{one} has {len(jobs)} jobs", f"say which: {one}.0")
    return attach(batch.pool, jobs[0], what)
