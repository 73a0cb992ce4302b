"""What the agent is told about a job: pure renderings of the control files sent over the channel."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Optional

from vmjob.core.model import Granted, Job, Slot


def job_script(job: Job) -> str:
    """The end of the shell script that the guest's user runs; the agent puts folder and limits before it.

    ``exec`` leaves the program itself under the agent, so that its status and signals are its own.
    """
    lines = [environment(job)] if job.environment else []
    if job.command:
        lines.append("exec " + shlex.join(job.command))
    elif job.script.startswith("#!"):
        lines.append("exec /run/vmjob/job/script")
    else:
        lines.append("exec /bin/sh /run/vmjob/job/script")
    return "\n".join(lines) + "\n"


def environment(job: Job) -> str:
    """The job's variables, for the shell of who looks in as well."""
    return "\n".join(f"{name}={shlex.quote(value)}; export {name}" for name, value in job.environment)


def features(granted: Granted, slot: Slot, now: int) -> dict[str, str]:
    """Machine/Job Features (HSF-TN-2016-02), one value a file; ``now`` in epoch seconds."""
    end: Optional[int] = now + granted.walltime if granted.walltime else None
    values: dict[str, Optional[int]] = {
        "machinefeatures/total_cpu": granted.cpus,
        "jobfeatures/allocated_cpu": granted.cpus,
        "jobfeatures/jobstart_secs": now,
        "jobfeatures/wall_limit_secs": granted.walltime,
        "jobfeatures/cpu_limit_secs": granted.walltime * granted.cpus if granted.walltime else None,
        "jobfeatures/max_rss_bytes": granted.memory,
        "jobfeatures/scratch_limit_bytes": granted.disk,
        "machinefeatures/shutdowntime": end,
        "jobfeatures/shutdowntime_job": end,
        "machinefeatures/grace_secs": 0,
        "jobfeatures/grace_secs_job": 0,
    }
    files = {name: str(value) for name, value in values.items() if value is not None}
    files["jobfeatures/job_id"] = slot.job_id or job_id(now)
    return files


def job_id(now: int) -> str:
    """An identifier for a job that no batch system named."""
    import os

    return f"vmjob-{now}-{os.getpid()}"


def control_lines(job: Job, user: str, granted: Granted, slot: Slot, now: int, seed: str,
                  more: Optional[Mapping[str, str]] = None) -> bytes:
    """All that the host sends between "ready" and "go"; ``seed`` is hexadecimal random data, ``more`` are files beside
    the job's own.

    A file of the job travels as ``file NAME`` and its lines behind ``|``: no encoding, so that a guest
    needs nothing but a shell to read it.
    """
    files = {"user": user + "\n", "outputs": "".join(glob + "\n" for glob in job.outputs),
             "job.sh": job_script(job), **features(granted, slot, now)}
    if job.environment:
        files["environment"] = environment(job) + "\n"
    if job.script:
        files["script"] = job.script
    files.update(more or {})
    lines = [f"start {now} {seed}"]
    for name, text in files.items():
        lines.append(f"file {name}")
        lines.extend("|" + line for line in text.removesuffix("\n").split("\n") if text)
    return "".join(line + "\n" for line in [*lines, "go"]).encode("utf-8", "surrogateescape")
