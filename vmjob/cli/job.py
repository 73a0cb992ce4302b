"""``vmjob run``, ``pack``, ``plan`` and the slot's ``slot-run``: options to calls, results to text."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Optional

from vmjob import api
from vmjob.cli import report
from vmjob.cli.jobargs import job_of
from vmjob.core.errors import JobError
from vmjob.core.model import Job
from vmjob.core.result import Failure, Result
from vmjob.core.units import format_duration, format_size

_CONSOLE_TELLS = ("BootFailed", "KernelPanic", "GuestHung", "GuestVanished", "AgentFailed")


def run(args: argparse.Namespace) -> int:
    """``vmjob run``: this machine is the slot."""
    job, base = job_of(args)
    results = _results_folder(args.results, job, bool(args.job))
    _one_run()
    result = api.run_job(job, base=base, results=results, scratch=Path(args.scratch) if args.scratch else None,
                         reporter=report.choose(args.quiet, args.json))
    return _tell(result, results, args)


def slot_run(args: argparse.Namespace) -> int:
    """What the wrapper starts in a slot: the payload is beside it, the results go where the batch system looks."""
    from vmjob.run import slot_run as slotrun

    this = slotrun.SlotRun(
        payload=Path(args.payload), results=Path(args.results or "."), pack=Path(args.pack) if args.pack else None,
        scratch=Path(args.scratch) if args.scratch else None, image_at=args.image_at, token_at=args.token_at,
        parameters=args.parameters)
    _one_run()
    result = slotrun.slot_run(this, report.choose(args.quiet, args.json))
    return _tell(result, None if this.pack else this.results, args)


def _one_run() -> None:
    """When the outcome of what comes now stands, signals change nothing any more."""
    from vmjob.core.interrupt import current

    signals = current()
    if signals:
        signals.one_run = True


def pack(args: argparse.Namespace) -> int:
    """``vmjob pack``: write the payload as a folder or a tar file."""
    job, base = job_of(args)
    out = Path(args.out)
    size = api.pack_job(job, out, base=base, reporter=report.choose(json=args.json), carry=args.carry_image)
    if args.json:
        print(json.dumps({"payload": str(out), "bytes": size, "job": job.name, "image": job.image}))
    else:
        print(f"{out}: {format_size(size)}, job {job.name} with the image {job.image}")
        enter = f"tar xf {out.name}" if out.suffix == ".tar" else f"cd {out}"
        print(f"in the slot: {enter} && sh vmjob-wrapper.sh")
    return 0


def plan(args: argparse.Namespace) -> int:
    """``vmjob plan``: the same words that run would use, with nothing started."""
    from vmjob.cli.plan import show, show_submission

    job, base = job_of(args)
    if args.to:
        return show_submission(job, base, args)
    if args.count is not None or args.settings or args.table:
        raise JobError("-n, --set and --from are about a submission", "name its target: --to")
    return show(job, base, Path(args.scratch) if args.scratch else config.default_scratch(), args.json)


# ---------------------------------------------------------------- options → Job


def _results_folder(named: Optional[str], job: Job, from_file: bool) -> Optional[Path]:
    """Made here. A one-liner without outputs leaves nothing behind."""
    if not named and not job.outputs and not from_file:
        return None
    folder = Path(named or f"{job.name}.out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise JobError(f"{folder}: the folder for the results cannot be made: {refused.strerror}",
                       "name another: --results DIR") from refused
    return folder


# ---------------------------------------------------------------- Result → text


def _tell(result: Result, results: Optional[Path], args: argparse.Namespace) -> int:
    if args.json:
        report.show(json.dumps(result.to_json(), indent=1))
    elif result.failure and (result.outcome == "failed" or not args.quiet):
        _tell_failure(result, result.failure)
    if not args.json and not args.quiet:
        report.say(_summary(result, results))
    return result.status


def _tell_failure(result: Result, failure: Failure) -> None:
    # what the kernel says while it powers off in order explains nothing
    for line in result.console_tail[-8:] if failure.kind in _CONSOLE_TELLS else ():
        report.say(f"console: {line}")
    report.say(f"{failure.stage}: {failure.message}")
    if failure.hint:
        report.say(f"→ {failure.hint}")


def _summary(result: Result, results: Optional[Path]) -> str:
    total = format_duration(result.ended - result.started)
    what = {"ok": "ok, exit status 0", "program-failed": f"the program ended with exit status {result.exit_status}",
            "failed": f"failed ({result.failure_kind}, status {result.status})"}[result.outcome]
    if result.signal:
        what += f" (signal {result.signal})"
    parts = [what, total]
    if result.glidein:
        parts.append(f"{result.glidein.jobs} jobs of the pool" + (f", {result.glidein.evicted} sent back"
                                                                  if result.glidein.evicted else ""))
    if result.accelerator:
        parts.append(result.accelerator.name)
    if result.peak_memory:
        parts.append(f"QEMU {format_size(result.peak_memory)}, {result.cpu_seconds:.1f} CPU s")
    if results is not None:
        parts.append(f"results in {results}{os.sep}")
    return "; ".join(parts)
