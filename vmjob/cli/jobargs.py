"""Options to a job, to what differs between jobs, to a target and the jobs in its queue."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.core.errors import JobError

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor
    from vmjob.batch.jobs import Cluster, JobId, JobInfo
    from vmjob.core.model import Job
    from vmjob.job.parameters import Parameters



def job_of(args: argparse.Namespace) -> tuple[Job, Path]:
    """The job of the command line (a file, options, or options over a file) and the folder its inputs are
    relative to. Raises JobError."""
    from vmjob.core.schema import check, load_yaml
    from vmjob.job.file import check_address, check_output, job_from, name_from, parse_input

    document: dict[str, Any] = {}
    where, name, base = "command line", "job", Path()
    if args.job:
        path = Path(args.job)
        if not path.exists() and path.suffix not in (".yaml", ".yml", ".json"):
            raise JobError(f"{path}: there is no such job file",
                           f"a program goes after --, as in: vmjob run --image micro -- {path}")
        document, where, base = dict(load_yaml(path, "job")), str(path), path.parent
        name = name_from(path)
    _lay_options_over(document, args)
    if not document.get("image"):
        raise JobError(f"{where}: no image is named", "add --image micro (vmjob image list shows what there is)")
    if not any(document.get(key) for key in ("command", "script", "glidein")):
        raise JobError(f"{where}: no program is named", "write it after --, as in: vmjob run --image micro -- uname -a")
    job = job_from(check(document, "job", where), where, name)
    more_in = tuple(parse_input(_from_here(text, base), f"--input {text}") for text in args.input)
    more_out = tuple(check_output(glob, "--output") for glob in args.output)
    job = replace(job, inputs=job.inputs + more_in, outputs=job.outputs + more_out)
    if args.outputs_to:
        if job.glidein or not job.outputs:
            raise JobError(f"--outputs-to {args.outputs_to}: this job has no outputs to send",
                           "say which: --output 'GLOB', or outputs in the job file")
        job = replace(job, outputs_to=check_address(args.outputs_to, "--outputs-to"))
    return job, base


def _lay_options_over(document: dict[str, Any], args: argparse.Namespace) -> None:
    for key in ("image", "name", "accel", "network", "user", "boot"):
        if getattr(args, key) is not None:
            document[key] = getattr(args, key)
    asked = {key: value for key in ("cpus", "memory", "disk", "walltime")
             if (value := getattr(args, key)) is not None}
    if asked:
        document["resources"] = {**document.get("resources", {}), **asked}
    if args.env:
        document["environment"] = {**document.get("environment", {}), **_variables(args.env)}
    if args.command is not None:
        if not args.command:
            raise JobError("there is no program after --", "vmjob run --image micro -- uname -a")
        document.pop("script", None)
        document["command"] = args.command


def _from_here(text: str, base: Path) -> str:
    """A path of the command line is relative to the current folder, not to the job file."""
    return text if base == Path() else str(Path.cwd() / text)


def _variables(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise JobError(f"--env {text}: expected NAME=VALUE", f"--env {text}=something")
        pairs[name] = value
    return pairs


def parameters_of(args: argparse.Namespace) -> Parameters:
    """How many jobs, and what differs between them, as the options say."""
    from vmjob.job.parameters import parameters

    return parameters(args.count, args.settings, Path(args.table) if args.table else None)


def open_target(args: argparse.Namespace) -> tuple[Condor, list[JobId]]:
    from vmjob.batch.jobs import parse_id

    return batch_of(args), [parse_id(text) for text in args.ids]


def batch_of(args: argparse.Namespace) -> Condor:
    from vmjob.batch import targets
    from vmjob.batch.condor import Condor

    target = targets.choose(args.to)
    if target.kind == "local":
        raise JobError("the target local has no queue: vmjob submit --to local returns with the results",
                       "name another target: --to")
    return Condor(target)


def named_of(cluster: Cluster, ids: list[JobId]) -> list[JobInfo]:
    from vmjob.batch.jobs import among

    return [job for job in cluster.jobs if among(ids, job.id)]
