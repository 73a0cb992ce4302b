"""``vmjob plan``: everything that run and pack would submit and start, printed. Starts nothing, uses no network."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.cli.options import carry_option, job_options, parameter_options, verb, verbose
from vmjob.cli.verbs import VERBS
from vmjob.core import config
from vmjob.core.errors import JobError
from vmjob.core.units import format_duration, format_size

if TYPE_CHECKING:
    from vmjob.core.model import Job


def add_verbs(verbs: Any) -> None:
    """plan."""
    one = verb(verbs, "plan", VERBS["plan"].help,
               "example:\n  vmjob plan --image micro --cpus 2 -- true\n"
               "  vmjob plan job.yaml --to condor -n 10 --set SEED='$(Process)'\n", plan)
    job_options(one)
    one.add_argument("--to", metavar="TARGET", help="show what vmjob submit would hand to this target")
    carry_option(one)
    one.add_argument("-n", "--count", type=int, metavar="N", help="(with --to) how many jobs")
    parameter_options(one)
    one.add_argument("--scratch", metavar="DIR", help="folder for temporary files (default: $TMPDIR or /var/tmp)")
    one.add_argument("--json", action="store_true", help="print it as JSON")
    verbose(one)


def plan(args: argparse.Namespace) -> int:
    """``vmjob plan``: the same words that run would use, with nothing started."""
    from vmjob.cli.jobargs import job_of

    job, base = job_of(args)
    if args.to:
        return show_submission(job, base, args)
    if args.count is not None or args.settings or args.table:
        raise JobError("-n, --set and --from are about a submission", "name its target: --to")
    return show(job, base, Path(args.scratch) if args.scratch else config.default_scratch(), args.json)


def show(job: Job, base: Path, scratch: Path, as_json: bool) -> int:
    """Print the plan; returns the exit status. Raises what run would raise before it starts anything."""
    from vmjob.run import plan as plans

    document = plans.plan(job, scratch, base)
    if as_json:
        print(json.dumps(document, indent=1))
        return 0
    limits = document["limits"]
    print("# payload")
    print(json.dumps(document["payload"], indent=1))
    walltime = f"{format_duration(limits['walltime'])} walltime" if limits["walltime"] else "no walltime"
    print(f"\n# limits: {limits['cpus']} CPUs, {format_size(limits['memory'])} memory, "
          f"{format_size(limits['disk'])} outputs, {walltime} (slot: {limits['slot']})")
    print(f"# accelerator: {document['accelerator']['name']}, {document['accelerator']['reason']}")
    print(f"# network: {document['network']}")
    print("\n# QEMU (started in a private folder of " + str(scratch) + ")")
    print(" \\\n  ".join(_lines(document["qemu"])))
    print("\n# what the agent in the guest is told")
    print(document["guest"], end="")
    if document["seed"]:
        print("\n# cloud-init seed, user-data")
        print(document["seed"], end="")
    return 0


def show_submission(job: Job, base: Path, args: argparse.Namespace) -> int:
    """Print what ``vmjob submit`` would hand to the target; returns the exit status."""
    from vmjob.batch import targets
    from vmjob.cli.jobargs import parameters_of
    from vmjob.submit import submission

    target, wanted = targets.choose(args.to), parameters_of(args)
    text, document = submission.describe(job, base, target, wanted, args.carry_image)
    if args.json:
        print(json.dumps({"target": target.name, "submit": text, "payload": document, "jobs": wanted.count}, indent=1))
        return 0
    print("# payload")
    print(json.dumps(document, indent=1))
    if text:
        print(f"\n# submit file for {target.name}; $(payload) and $(image) are folders that the schedd gives them")
    print(text or "\n# local: the wrapper runs here, once for each job", end="" if text else "\n")
    return 0


def _lines(argv: list[str]) -> list[str]:
    """An option and its value on one line."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return lines
