"""Options that several verbs have, and how a verb is added. Handlers are imported when they are called."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

Handler = Callable[[argparse.Namespace], int]


def verb(verbs: Any, name: str, text: str, examples: str, handler: Any) -> argparse.ArgumentParser:
    """Add the verb (or what stands below one) ``name``; ``text``: its line of help, ``handler``: what is called."""
    one: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    one.set_defaults(handler=handler)
    return one


def later(module: str, function: str) -> Handler:
    """The handler ``function`` of vmjob.cli's ``module``, which is imported when it is called."""
    def call(args: argparse.Namespace) -> int:
        status: int = getattr(import_module(f"vmjob.cli.{module}"), function)(args)
        return status

    return call


def in_queue(module: str, function: str) -> Handler:
    """As ``later``, for what asks a batch system: a signal ends the asking, and the jobs go on."""
    handler = later(module, function)

    def call(args: argparse.Namespace) -> int:
        from vmjob.core.errors import Interrupted

        try:
            return handler(args)
        except Interrupted as stopped:
            if function == "console":  # the way out of it
                return 0
            stopped.hint = "nothing was submitted" if function == "submit" and args.to != "local" else \
                "what is in the queue goes on; ask again when you like"
            raise

    return call


def verbose(one: argparse.ArgumentParser) -> None:
    """-v, for every verb."""
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: every command that is run")


def common(one: argparse.ArgumentParser) -> None:
    """--json and -v."""
    one.add_argument("--json", action="store_true", help="print the answer as JSON")
    verbose(one)


def target_option(one: argparse.ArgumentParser) -> None:
    """--to."""
    one.add_argument("--to", metavar="TARGET", help="a name of targets.yaml, or local, condor, "
                     "condor://COLLECTOR[/SCHEDD], condor-ce://HOST[:9619] (default: the default of targets.yaml, else "
                     "condor)")


def job_options(one: argparse.ArgumentParser) -> None:
    """A job file, and the options that win over what it says."""
    one.usage = f"vmjob {one.prog.split()[-1]} [JOB.yaml] [options] [-- PROGRAM ARGUMENT...]"
    one.add_argument("job", nargs="?", metavar="JOB.yaml", help="job file; the options below win over what it says")
    one.add_argument("--image", metavar="IMAGE", help="name or digest in the store, or path of a manifest.yaml")
    one.add_argument("--name", metavar="NAME", help="name of the job")
    one.add_argument("--cpus", type=int, metavar="N", help="virtual CPUs")
    one.add_argument("--memory", metavar="SIZE", help="memory of the guest, such as 2GiB")
    one.add_argument("--disk", metavar="SIZE", help="most that the outputs may take, such as 10GiB")
    one.add_argument("--walltime", metavar="TIME", help="longest time, such as 90s, 45m or 1h30m")
    one.add_argument("--input", action="append", metavar="PATH[:NAME]", default=[],
                     help="file, folder or glob to put into the guest's work folder (repeatable)")
    one.add_argument("--output", action="append", metavar="GLOB", default=[],
                     help="what to bring back from the work folder (repeatable)")
    one.add_argument("--outputs-to", metavar="ADDRESS", dest="outputs_to",
                     help="send them there (https, davs or root) from the node; ${NAME} is of the job's environment")
    one.add_argument("--env", action="append", metavar="NAME=VALUE", default=[],
                     help="environment variable in the guest (repeatable)")
    one.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="kvm: fail rather than crawl (default: auto)")
    one.add_argument("--network", choices=("nat", "isolated", "none"), help="default: nat")
    one.add_argument("--user", metavar="NAME", help="user in the guest (default: the image's)")
    one.add_argument("--boot", choices=("job", "system", "disk"), help="boot method (default: the image's first)")


def carry_option(one: argparse.ArgumentParser) -> None:
    """Whether an image travels that nodes could fetch."""
    one.add_argument("--carry-image", action="store_true",
                     help="send the image along, although it has sources that nodes can fetch it from")


def parameter_options(one: argparse.ArgumentParser) -> None:
    """What differs between the jobs of one submission."""
    one.add_argument("--set", action="append", metavar="NAME=VALUE", default=[], dest="settings",
                     help="parameter of the jobs, an environment variable of the program; $(Process) in VALUE is the "
                          "job's number, from 0 on (repeatable)")
    one.add_argument("--from", metavar="FILE.csv", dest="table", help="parameters of each job: one job a row")
