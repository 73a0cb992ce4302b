"""``vmjob plan``: everything that run and pack would submit and start, printed. Starts nothing, uses no network."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from vmjob.core.model import Job
from vmjob.core.units import format_duration, format_size
from vmjob.run.plan import plan


def show(job: Job, base: Path, scratch: Path, as_json: bool) -> int:
    """Print the plan; returns the exit status. Raises what run would raise before it starts anything."""
    document = plan(job, scratch, base)
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
