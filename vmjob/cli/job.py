"""``vmjob run``, ``pack`` and the slot's ``slot-run``: options to calls, results to text."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli import report
from vmjob.cli.options import carry_option, job_options, verb, verbose
from vmjob.cli.verbs import VERBS
from vmjob.core.errors import JobError
from vmjob.core.units import format_duration, format_size

if TYPE_CHECKING:
    from vmjob.core.model import Job
    from vmjob.core.result import Failure, Result

_CONSOLE_TELLS = ("BootFailed", "KernelPanic", "GuestHung", "GuestVanished", "AgentFailed")


_RUN_EXAMPLES = """\
examples:
  vmjob run --image micro -- sh -c 'echo hello; exit 7'
  vmjob run --image pythia --cpus 2 --memory 2GiB --input gen.py --output '*.root' -- python3 gen.py
  vmjob run examples/pythia/job.yaml --results out

The exit status is the program's own; 200 and above are failures of vmjob's (see docs/user.md).
"""


def add_verbs(verbs: Any) -> None:
    """run, pack, slot-run."""
    one = verb(verbs, "run", VERBS["run"].help, _RUN_EXAMPLES, run)
    job_options(one)
    one.add_argument("--results", metavar="DIR",
                     help="folder for result.json and the outputs (default: NAME.out where there are any)")
    one.add_argument("--scratch", metavar="DIR", help="folder for temporary files (default: $TMPDIR or /var/tmp)")
    one.add_argument("--json", action="store_true", help="print result.json on stdout; the program's output on stderr")
    one.add_argument("-q", "--quiet", action="store_true", help="print nothing but the program's own output")
    verbose(one)

    packed = verb(verbs, "pack", VERBS["pack"].help,
                  "example:\n  vmjob pack job.yaml -o payload.tar\n"
                  "  (in the slot: tar xf payload.tar && sh vmjob-wrapper.sh)\n", pack)
    job_options(packed)
    packed.add_argument("-o", "--out", metavar="DIR|FILE.tar", required=True, help="folder or tar file to write")
    carry_option(packed)
    packed.add_argument("--json", action="store_true", help="print what was written as JSON")
    verbose(packed)

    slot = verbs.add_parser("slot-run", description="Run a packed payload in a batch slot; the wrapper calls this.")
    slot.set_defaults(handler=slot_run)
    slot.add_argument("--payload", metavar="DIR", required=True, help="folder of the unpacked payload")
    slot.add_argument("--results", metavar="DIR", help="folder for result.json and the outputs (default: here)")
    slot.add_argument("--pack", metavar="FILE", help="one tar file for the results, in place of a folder")
    slot.add_argument("--image-at", metavar="PLACE", default="",
                      help="where the submit side keeps the image: a folder, or the CLUSTER.PROC of the job that "
                           "carries it (HTCondor's Chirp fetches it, once for a node)")
    slot.add_argument("--token-at", metavar="PLACE", default="",
                      help="where a glide-in's token is: a name in the payload's folder, or a file at the submit side, "
                           "FOLDER/NAME or CLUSTER.PROC/NAME")
    slot.add_argument("--parameters", metavar="NAME=VALUE&...", default="",
                      help="environment variables of this one job, percent-encoded")
    slot.add_argument("--scratch", metavar="DIR", help="folder for temporary files (default: the slot's scratch)")
    slot.add_argument("--json", action="store_true", help="print result.json on stdout")
    slot.add_argument("-q", "--quiet", action="store_true", help="print nothing but the program's own output")
    verbose(slot)


def run(args: argparse.Namespace) -> int:
    """``vmjob run``: this machine is the slot."""
    from vmjob.cli.jobargs import job_of
    from vmjob.run.here import run_job

    job, base = job_of(args)
    results = _results_folder(args.results, job, bool(args.job))
    _one_run()
    result = run_job(job, base=base, results=results, scratch=Path(args.scratch) if args.scratch else None,
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
    from vmjob.api import pack_job
    from vmjob.cli.jobargs import job_of

    job, base = job_of(args)
    out = Path(args.out)
    size = pack_job(job, out, base=base, reporter=report.choose(json=args.json), carry=args.carry_image)
    if args.json:
        print(json.dumps({"payload": str(out), "bytes": size, "job": job.name, "image": job.image}))
    else:
        print(f"{out}: {format_size(size)}, job {job.name} with the image {job.image}")
        enter = f"tar xf {out.name}" if out.suffix == ".tar" else f"cd {out}"
        print(f"in the slot: {enter} && sh vmjob-wrapper.sh")
    return 0


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
