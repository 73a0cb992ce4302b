"""``vmjob status``, ``wait``, ``rm``, ``release`` and ``history``, and how the other verbs about a queue are called."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from vmjob.cli import report
from vmjob.cli.jobargs import named_of, open_target
from vmjob.cli.options import common, in_queue, target_option, verb, verbose
from vmjob.cli.verbs import VERBS
from vmjob.core.errors import JobError
from vmjob.core.pool_errors import JobHeld, JobsPending
from vmjob.core.units import counted, parse_duration

if TYPE_CHECKING:
    from vmjob.batch.jobs import Cluster, JobId, JobInfo

_POLL = 2.0  # seconds


def add_verbs(verbs: Any) -> None:
    """status, wait, logs, fetch, rm, release, history, console, ssh."""
    _ids(verbs, "status", "example:\n  vmjob status\n  vmjob status 42\n", "status")
    wait = _ids(verbs, "wait", "example:\n  vmjob wait 42 && vmjob fetch 42\n", "wait", needed=True)
    wait.add_argument("--timeout", metavar="TIME", help="give up after this time (the jobs go on)")
    logs = _ids(verbs, "logs", "example:\n  vmjob logs 42.3\n  vmjob logs 42.3 --stderr\n", "logs", needed=True,
                module="attach")
    logs.add_argument("--stderr", action="store_true", help="its standard error, with vmjob's own lines")
    fetch = _ids(verbs, "fetch", "example:\n  vmjob fetch 42            into NAME-42.out/, of many NAME-42.out/PROC/\n"
                 "  vmjob fetch 42.3 -o out\n",
                 "fetch", needed=True, module="fetch")
    fetch.add_argument("-o", "--out", metavar="DIR", help="folder for the results (default: NAME-ID.out)")
    fetch.add_argument("--keep", action="store_true", help="leave them at the target too, and the jobs in the queue")
    remove = _ids(verbs, "rm", "example:\n  vmjob rm 42\n  vmjob rm 42.3\n", "remove")
    remove.add_argument("--images", action="store_true",
                        help="remove the images too that the target keeps for later jobs")
    _ids(verbs, "release", "example:\n  vmjob release 42\n", "release", needed=True)
    history = _ids(verbs, "history", "example:\n  vmjob history\n", "history")
    history.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, the latest (default: 50)")
    for name in ("console", "ssh"):
        one = verb(verbs, name, VERBS[name].help, f"example:\n  vmjob {name} 42.0\n", in_queue("attach", name))
        one.add_argument("id", metavar="ID", help="CLUSTER.PROC as vmjob status shows it")
        target_option(one)
        one.add_argument("--json", action="store_true", help="print a failure as JSON")
        verbose(one)


def _ids(verbs: Any, name: str, examples: str, handler: str, needed: bool = False,
         module: str = "queue") -> argparse.ArgumentParser:
    one = verb(verbs, name, VERBS[name].help, examples, in_queue(module, handler))
    named = needed or handler == "remove"
    one.add_argument("ids", metavar="ID", nargs="+" if needed else "*", help="CLUSTER or CLUSTER.PROC"
                     + (", as vmjob submit printed it" if named else " (default: all of yours)"))
    target_option(one)
    common(one)
    return one


def status(args: argparse.Namespace) -> int:
    """``vmjob status``."""
    from vmjob.batch.jobs import JobId
    from vmjob.cli import tables

    batch, ids = open_target(args)
    clusters = batch.clusters(ids)
    if args.json:
        report.show(json.dumps([_document(cluster, ids) for cluster in clusters]))
        return 0
    if not clusters:
        report.say(f"no jobs of yours in the queue of {batch.target.name}; vmjob history shows those that have left it")
        return 0
    if ids:
        report.show(tables.jobs([job for cluster in clusters for job in named_of(cluster, ids)],
                                sum(cluster.waiting for cluster in clusters if JobId(cluster.id) in ids)))
    else:
        report.show(tables.clusters(clusters))
    return 0


def wait(args: argparse.Namespace) -> int:
    """``vmjob wait``: until no job runs or may still run."""
    from vmjob.batch.follow import Following
    from vmjob.cli import tables

    batch, ids = open_target(args)
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
                raise JobsPending(f"{counted(left, 'job')} had not ended within {args.timeout}",
                                  "they go on: wait again, or see vmjob status")
            time.sleep(_POLL)
    if args.json:
        report.show(json.dumps([job.to_json() for job in following.jobs]))
    else:
        report.show(tables.jobs(following.jobs, 0))
    return _status_of(following.jobs, told=not args.json)


def _status_of(jobs: list[JobInfo], told: bool) -> int:
    from vmjob.batch.jobs import State, first_failure

    held = [job for job in jobs if job.state is State.HELD]
    if held and told:
        report.say(f"{counted(len(held), 'job')} held, such as {held[0].id}: {held[0].reason}")
        report.say(f"→ fix it, then vmjob release {held[0].id.cluster}; or give it up: vmjob rm {held[0].id.cluster}")
    return first_failure([JobHeld.status if job.state in (State.HELD, State.REMOVED) else job.status for job in jobs])


def remove(args: argparse.Namespace) -> int:
    """``vmjob rm``."""
    if not args.ids and not args.images:
        raise JobError("vmjob rm: which jobs?", "vmjob rm 42, or vmjob rm --images for the images that a target keeps")
    batch, ids = open_target(args)
    count, unfetched = batch.remove(ids) if ids else (0, 0)
    images, needed = batch.remove_images() if args.images else (0, 0)
    if args.json:
        print(json.dumps({"removed": count, "unfetched": unfetched, "images": images}))
    else:
        print(f"removed {counted(count, 'job')}" + (f" and {counted(images, 'image')}" if args.images else "")
              + (f", and the results of {unfetched} that nobody had fetched" if unfetched else ""))
    if needed:
        report.say(f"{counted(needed, 'image')} stayed for jobs in the queue: see vmjob status")
    return 0


def release(args: argparse.Namespace) -> int:
    """``vmjob release``."""
    batch, ids = open_target(args)
    batch.clusters(ids)
    count = batch.release(ids)
    print(json.dumps({"released": count}) if args.json else f"released {counted(count, 'job')}")
    if not count:
        report.say("none of them is held")
    return 0


def history(args: argparse.Namespace) -> int:
    """``vmjob history``."""
    from vmjob.cli import tables

    batch, ids = open_target(args)
    jobs = batch.history(ids, args.limit)
    if args.json:
        report.show(json.dumps([job.to_json() for job in jobs]))
    elif jobs:
        report.show(tables.jobs(jobs, 0))
    else:
        report.say(f"no job of yours has left the queue of {batch.target.name} yet")
    return 0


def _document(cluster: Cluster, ids: list[JobId]) -> dict[str, object]:
    return {"id": str(cluster.id), "name": cluster.name, "total": cluster.total, "waiting": cluster.waiting,
            "jobs": [job.to_json() for job in named_of(cluster, ids)]}

