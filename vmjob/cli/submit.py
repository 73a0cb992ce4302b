"""``vmjob submit``: jobs go to a batch system, or to the best site (``--to any``)."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli import report
from vmjob.cli.options import carry_option, common, in_queue, job_options, parameter_options, target_option, verb
from vmjob.cli.sites_options import any_options
from vmjob.cli.verbs import VERBS
from vmjob.core.errors import JobError
from vmjob.core.units import counted

if TYPE_CHECKING:
    from vmjob.core.model import Job
    from vmjob.submit.submission import Submitted

import re
from typing import TYPE_CHECKING

_SUBMIT_EXAMPLES = """\
examples:
  vmjob submit job.yaml --to condor                       the pool of this machine
  vmjob submit job.yaml --to condor-ce://ce.example.org   a compute element; it listens on port 9619
  vmjob submit job.yaml --to clemson -n 10 --set SEED='$(Process)'
  vmjob submit job.yaml --to clemson --from seeds.csv     one job a row; the first line names the parameters
  vmjob submit job.yaml --to any --vo star                the best site that fits (vmjob sites --for job.yaml: why)

Targets have names in ~/.config/vmjob/targets.yaml (vmjob schema targets). Parameters are environment variables of
the program.
"""


def add_verbs(verbs: Any) -> None:
    """submit."""
    submit = verb(verbs, "submit", VERBS["submit"].help, _SUBMIT_EXAMPLES, in_queue("submit", "submit"))
    job_options(submit)
    target_option(submit)
    submit.add_argument("-n", "--count", type=int, metavar="N",
                        help="how many jobs (default: 1, or one a row of --from)")
    parameter_options(submit)
    carry_option(submit)
    any_options(submit)
    submit.add_argument("--results", metavar="DIR", help="(target local) folder for the results (default: NAME.out)")
    common(submit)


def submit(args: argparse.Namespace) -> int:
    """``vmjob submit``."""
    from vmjob.batch import targets
    from vmjob.batch.jobs import first_failure
    from vmjob.cli.jobargs import job_of, parameters_of

    if not args.job and not args.name and args.command:
        import secrets

        # a name is given to one submission at a time
        word = re.sub(r"[^A-Za-z0-9]+", "-", Path(args.command[0]).name).strip("-")[:40]
        args.name = f"{word or 'job'}-{secrets.token_hex(2)}"
    job, base = job_of(args)
    if args.to == targets.ANY:
        return _submit_any(args, job, base)
    not_any(args)
    target = targets.choose(args.to)
    wanted = parameters_of(args)
    reporter = report.choose(json=args.json)
    if target.kind == "local":
        from vmjob.submit.local import run_here

        results = Path(args.results or f"{job.name}.out")
        statuses = run_here(job, base, wanted, results, reporter)
        if args.json:
            report.show(json.dumps({"target": "local", "name": job.name, "results": str(results),
                                    "statuses": statuses}))
        else:
            report.say(f"{statuses.count(0)} of {len(statuses)} jobs ended with 0; results in {results}/")
        return first_failure(statuses)
    if args.results:
        raise JobError("--results is for the target local", "other results are brought by: vmjob fetch ID -o DIR")
    from vmjob.submit import submission

    done = submission.submit_job(job, base, target, wanted, reporter, args.carry_image)
    tell(done, args.to, args.json)
    return 0


def not_any(args: argparse.Namespace) -> None:
    """Raises JobError where options are there that only ``--to any`` has a use for."""
    for option, value in (("--sites", args.sources), ("--vo", args.vo is not None), ("--fresh", args.fresh)):
        if value:
            raise JobError(f"{option} is for --to any, and this goes to {args.to or 'the default target'}",
                           f"leave it out, or: vmjob submit --to any {option} …")


def tell(done: Submitted, to: Optional[str], as_json: bool, more: Optional[dict[str, Any]] = None) -> None:
    """What was queued, and the next thing to do, in words that work as they are."""
    if as_json:
        print(json.dumps({"id": str(done.cluster), "jobs": done.jobs, "name": done.name, "target": done.target,
                          **(more or {})}))
        return
    print(f"{done.cluster}: {counted(done.jobs, 'job')} named {done.name} at {done.target}")
    where = f" --to {shlex.quote(to)}" if to else ""
    report.say(f"next: vmjob wait{where} {done.cluster} && vmjob fetch{where} {done.cluster}")


def _submit_any(args: argparse.Namespace, job: Job, base: Path) -> int:
    """``vmjob submit --to any``."""
    from vmjob.cli.jobargs import parameters_of
    from vmjob.cli.sites_options import found
    from vmjob.submit import anywhere

    if args.results:
        raise JobError("--results is for the target local", "other results are brought by: vmjob fetch ID -o DIR")
    try:
        wanted = parameters_of(args)
    except JobError as wrong:
        if args.table:
            wrong.hint += "; where to ask for sites is named by --sites here"
        raise
    answer, vo = found(args)
    ranked = anywhere.candidates(anywhere.needs_here(job, vo, args.carry_image), answer.sites)
    done = anywhere.submit_to_any(job, base, ranked, wanted, report.choose(json=args.json), args.carry_image)
    if not args.json:
        report.say(f"{done.match.site} was chosen: " + "; ".join(each.text for each in done.match.reasons))
    tell(done.submitted, done.match.element.url, args.json, {
        "site": done.match.site, "reasons": [asdict(each) for each in done.match.reasons],
        "failed": [{"site": one.site, "url": one.element.url, "kind": error.kind, "message": error.message}
                   for one, error in done.failed]})
    return 0
