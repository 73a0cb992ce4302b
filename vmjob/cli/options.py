"""The verbs and their options. Handlers import what they need when they are called."""

from __future__ import annotations

import argparse
from typing import Any

from vmjob.cli.verbs import VERBS
from vmjob.core.schema import NAMES

_RUN_EXAMPLES = """\
examples:
  vmjob run --image micro -- sh -c 'echo hello; exit 7'
  vmjob run --image pythia --cpus 2 --memory 2GiB --input gen.py --output '*.root' -- python3 gen.py
  vmjob run examples/pythia/job.yaml --results out

The exit status is the program's own; 200 and above are failures of vmjob's (see docs/user.md).
"""


def add_verbs(verbs: Any) -> None:
    """The verbs about jobs and about this machine."""
    run = _verb(verbs, "run", VERBS["run"].help, _RUN_EXAMPLES, _run)
    _job_options(run)
    run.add_argument("--results", metavar="DIR",
                     help="folder for result.json and the outputs (default: NAME.out where there are any)")
    run.add_argument("--scratch", metavar="DIR", help="folder for temporary files (default: $TMPDIR or /var/tmp)")
    run.add_argument("--json", action="store_true", help="print result.json on stdout; the program's output on stderr")
    run.add_argument("-q", "--quiet", action="store_true", help="print nothing but the program's own output")
    _verbose(run)

    pack = _verb(verbs, "pack", VERBS["pack"].help,
                 "example:\n  vmjob pack job.yaml -o payload.tar\n"
                 "  (in the slot: tar xf payload.tar && sh vmjob-wrapper.sh)\n", _pack)
    _job_options(pack)
    pack.add_argument("-o", "--out", metavar="DIR|FILE.tar", required=True, help="folder or tar file to write")
    carry_option(pack)
    pack.add_argument("--json", action="store_true", help="print what was written as JSON")
    _verbose(pack)

    plan = _verb(verbs, "plan", VERBS["plan"].help,
                 "example:\n  vmjob plan --image micro --cpus 2 -- true\n"
                 "  vmjob plan job.yaml --to condor -n 10 --set SEED='$(Process)'\n", _plan)
    _job_options(plan)
    plan.add_argument("--to", metavar="TARGET", help="show what vmjob submit would hand to this target")
    carry_option(plan)
    plan.add_argument("-n", "--count", type=int, metavar="N", help="(with --to) how many jobs")
    parameter_options(plan)
    plan.add_argument("--scratch", metavar="DIR", help="folder for temporary files (default: $TMPDIR or /var/tmp)")
    plan.add_argument("--json", action="store_true", help="print it as JSON")
    _verbose(plan)

    doctor = _verb(verbs, "doctor", VERBS["doctor"].help,
                   "example:\n  vmjob doctor\n  vmjob doctor --json\n", _doctor)
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.add_argument("--fresh", action="store_true", help="ask again instead of using remembered answers")
    _verbose(doctor)

    schema = _verb(verbs, "schema", VERBS["schema"].help,
                   "example:\n  vmjob schema job > job.schema.json\n", _schema)
    schema.add_argument("name", choices=NAMES)
    schema.add_argument("--json", action="store_true", help="(it always is)")

    slot = verbs.add_parser("slot-run", description="Run a packed payload in a batch slot; the wrapper calls this.")
    slot.set_defaults(handler=_slot_run)
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
    _verbose(slot)

    look = verbs.add_parser("slot-attach", description="Look into the guest of a running job; the wrapper calls this.")
    look.set_defaults(handler=_slot_attach)
    look.add_argument("what", choices=("console", "shell"))
    look.add_argument("--scratch", metavar="DIR", help="folder where the run lives (default: the slot's scratch)")
    _verbose(look)


def _verb(verbs: Any, name: str, text: str, examples: str, handler: Any) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    one.set_defaults(handler=handler)
    return one


def _verbose(one: argparse.ArgumentParser) -> None:
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: every command that is run")


def _job_options(one: argparse.ArgumentParser) -> None:
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


def _run(args: argparse.Namespace) -> int:
    from vmjob.cli import job

    return job.run(args)


def _pack(args: argparse.Namespace) -> int:
    from vmjob.cli import job

    return job.pack(args)


def _plan(args: argparse.Namespace) -> int:
    from vmjob.cli import job

    return job.plan(args)


def _slot_run(args: argparse.Namespace) -> int:
    from vmjob.cli import job

    return job.slot_run(args)


def _slot_attach(args: argparse.Namespace) -> int:
    from vmjob.cli import attach

    return attach.slot_attach(args)


def _doctor(args: argparse.Namespace) -> int:
    from vmjob.cli import doctor as machine

    return machine.doctor(args)


def _schema(args: argparse.Namespace) -> int:
    from vmjob.core.schema import schema_text

    print(schema_text(args.name), end="")
    return 0
