"""Jobs as tables for people."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vmjob.batch.jobs import ENDED, Cluster, JobInfo, State
from vmjob.core.escapes import shown
from vmjob.core.units import format_duration, format_size


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; a column without any value is left out. Some values come from guests and sites:
    they are shown escaped."""
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]
    lines = [[head[at] for at in kept], *[[shown(row[at]) for at in kept] for row in rows]]
    widths = [max(len(line[at]) for line in lines) for at in range(len(kept))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def clusters(found: Sequence[Cluster]) -> str:
    """One line a submission; what is held says why."""
    rows, why = [], []
    for cluster in found:
        counts = Counter(job.state for job in cluster.jobs)
        counts[State.WAITING] += cluster.waiting
        submitted = min((job.submitted for job in cluster.jobs if job.submitted), default=None)
        rows.append([str(cluster.id), cluster.name, str(cluster.total),
                     ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]),
                     _when(submitted)])
        held = [job for job in cluster.jobs if job.state is State.HELD]
        for reason in dict.fromkeys(job.reason for job in held):
            same = [job for job in held if job.reason == reason]
            why.append(f"{same[0].id}{f' and {len(same) - 1} more' if same[1:] else ''}: held: {shown(reason)}")
    return "\n".join([table(["ID", "NAME", "JOBS", "STATES", "SUBMITTED"], rows), *why])


def jobs(found: Sequence[JobInfo], waiting: int) -> str:
    """One line a job."""
    rows = [[str(job.id), job.name, _state(job), "" if job.status is None else str(job.status), job.node,
             job.accelerator, _lasted(job), job.parameters[:40]] for job in found]
    lines = [table(["ID", "NAME", "STATE", "STATUS", "NODE", "ACCEL", "TIME", "PARAMETERS"], rows)]
    if waiting:
        lines.append(f"and {waiting} more that wait to be made (late materialisation)")
    for job in found:
        if job.reason and (job.state is State.HELD or job.failure):
            lines.append(f"{job.id}: {shown(job.reason)}")
    return "\n".join(lines)


def results(documents: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """What came back: one line a result.json, by the job's number."""
    rows = []
    for number, body in documents:
        stages = {stage["name"]: stage["seconds"] for stage in body["stages"]}
        rows.append([number, body["job"], body["outcome"], str(body["status"]), body["host"],
                     (body["accelerator"] or {}).get("name", ""),
                     *(f"{stages[name]:.1f}" if name in stages else "" for name in ("verify", "boot", "payload")),
                     format_size(body.get("bytes_image", 0)), (body["failure"] or {}).get("kind", "")])
    return table(["ID", "NAME", "OUTCOME", "STATUS", "NODE", "ACCEL", "VERIFY s", "BOOT s", "PAYLOAD s", "IMAGE MOVED",
                  "FAILURE"], rows)


def _state(job: JobInfo) -> str:
    if job.state is State.RUNNING and job.stage:
        return f"running ({job.stage})"
    if job.state is State.DONE and job.failure:
        return f"done ({job.failure})"
    return job.state.value


def _lasted(job: JobInfo) -> str:
    if not job.started:
        return ""
    until = job.ended if job.state in ENDED and job.ended else time.time()
    return format_duration(max(0.0, until - job.started))


def _when(seconds: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
