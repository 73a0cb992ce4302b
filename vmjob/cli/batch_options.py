"""The verbs about jobs in a batch system, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vmjob.cli.options import _job_options, _verb, _verbose, carry_option, parameter_options
from vmjob.cli.sites_options import any_options
from vmjob.cli.verbs import VERBS

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
    """submit, status, wait, logs, fetch, rm, release, history."""
    submit = _verb(verbs, "submit", VERBS["submit"].help, _SUBMIT_EXAMPLES, _later("submit"))
    _job_options(submit)
    _to(submit)
    submit.add_argument("-n", "--count", type=int, metavar="N",
                        help="how many jobs (default: 1, or one a row of --from)")
    parameter_options(submit)
    carry_option(submit)
    any_options(submit)
    submit.add_argument("--results", metavar="DIR", help="(target local) folder for the results (default: NAME.out)")
    _common(submit)

    _ids(verbs, "status", "example:\n  vmjob status\n  vmjob status 42\n", "status")
    wait = _ids(verbs, "wait", "example:\n  vmjob wait 42 && vmjob fetch 42\n", "wait", needed=True)
    wait.add_argument("--timeout", metavar="TIME", help="give up after this time (the jobs go on)")
    logs = _ids(verbs, "logs", "example:\n  vmjob logs 42.3\n  vmjob logs 42.3 --stderr\n", "logs", needed=True)
    logs.add_argument("--stderr", action="store_true", help="its standard error, with vmjob's own lines")
    fetch = _ids(verbs, "fetch", "example:\n  vmjob fetch 42            into NAME-42.out/, of many NAME-42.out/PROC/\n"
                 "  vmjob fetch 42.3 -o out\n",
                 "fetch", needed=True)
    fetch.add_argument("-o", "--out", metavar="DIR", help="folder for the results (default: NAME-ID.out)")
    fetch.add_argument("--keep", action="store_true", help="leave them at the target too, and the jobs in the queue")
    remove = _ids(verbs, "rm", "example:\n  vmjob rm 42\n  vmjob rm 42.3\n", "remove")
    remove.add_argument("--images", action="store_true",
                        help="remove the images too that the target keeps for later jobs")
    _ids(verbs, "release", "example:\n  vmjob release 42\n", "release", needed=True)
    history = _ids(verbs, "history", "example:\n  vmjob history\n", "history")
    history.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many, the latest (default: 50)")
    for name in ("console", "ssh"):
        one = _verb(verbs, name, VERBS[name].help, f"example:\n  vmjob {name} 42.0\n", _later(name))
        one.add_argument("id", metavar="ID", help="CLUSTER.PROC as vmjob status shows it")
        _to(one)
        one.add_argument("--json", action="store_true", help="print a failure as JSON")
        _verbose(one)


def _ids(verbs: Any, name: str, examples: str, handler: str, needed: bool = False) -> argparse.ArgumentParser:
    one = _verb(verbs, name, VERBS[name].help, examples, _later(handler))
    named = needed or handler == "remove"
    one.add_argument("ids", metavar="ID", nargs="+" if needed else "*", help="CLUSTER or CLUSTER.PROC"
                     + (", as vmjob submit printed it" if named else " (default: all of yours)"))
    _to(one)
    _common(one)
    return one


def _to(one: argparse.ArgumentParser) -> None:
    one.add_argument("--to", metavar="TARGET", help="a name of targets.yaml, or local, condor, "
                     "condor://COLLECTOR[/SCHEDD], condor-ce://HOST[:9619] (default: the default of targets.yaml, else "
                     "condor)")


def _common(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    _verbose(one)


def _later(function: str) -> Callable[[argparse.Namespace], int]:
    def call(args: argparse.Namespace) -> int:
        from vmjob.cli import queue
        from vmjob.core.errors import Interrupted

        try:
            status: int = getattr(queue, function)(args)
            return status
        except Interrupted as stopped:
            if function == "console":  # the way out of it
                return 0
            stopped.hint = "nothing was submitted" if function == "submit" and args.to != "local" else \
                "what is in the queue goes on; ask again when you like"
            raise

    return call
