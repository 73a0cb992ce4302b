"""The options of ``vmjob sites --for`` and ``vmjob submit --to any``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmjob.sites.read import Found


from vmjob.cli.options import carry_option

DIALECTS = ("jdl", "classad", "old", "ce")


def any_options(verb: Any) -> None:
    """Where ``--to any`` looks for a site (--from has another meaning there)."""
    verb.add_argument("--sites", metavar="URL", action="append", default=[], dest="sources",
                      help="(--to any) ask this for sites, as vmjob sites --from (repeatable)")
    verb.add_argument("--vo", metavar="VO", help="(--to any) whose job it is (default: vo: in sites.yaml)")
    verb.add_argument("--fresh", action="store_true", help="(--to any) ask for sites again, though it was just done")


def for_options(verb: Any) -> None:
    """What ``vmjob sites`` explains sites by."""
    verb.add_argument("--for", metavar="JOB.yaml", dest="job", help="say for each site why this job can go there or "
                      "not, the best first: it is what vmjob submit --to any would take; the exit status is 205 where "
                      "none fits")
    verb.add_argument("--image", metavar="IMAGE", help="the same for a job with this image, or for the job with it in "
                      "place of its own")
    verb.add_argument("--cpus", type=int, metavar="N", help="and these virtual CPUs")
    verb.add_argument("--memory", metavar="SIZE", help="and this memory of the guest")
    verb.add_argument("--walltime", metavar="TIME", help="and this longest time")
    verb.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="and this accelerator")
    verb.add_argument("--network", choices=("nat", "isolated", "none"), help="and this network")
    carry_option(verb)
    verb.add_argument("--forget", action="store_true", help="forget failures at sites, and ask nobody: for some "
                      "hours they are pushed back")
    verb.add_argument("--requirements", choices=DIALECTS, help="(with --for or --image) ask nobody, and print "
                      "what other systems find such sites by: Requirements of a JDL file, requirements of an HTCondor "
                      "job for ReSS' ads (classad; old for OLD_CLASSAD), a constraint for schedd ads (ce)")


def source_options(verb: Any) -> None:
    """Where to ask, and for whom; whoever has them calls ``found``."""
    verb.add_argument("--from", metavar="URL", action="append", default=[], dest="sources",
                      help="ask this instead of those in sites.yaml: ldap://HOST:2170, condor-ce://HOST, "
                           "condor://HOST, https://HOST/site.json, or the path of such a document (repeatable)")
    verb.add_argument("--vo", metavar="VO", help="sites that take jobs of this VO (default: vo: in sites.yaml)")
    verb.add_argument("--fresh", action="store_true", help="ask again, also what answered less than a minute ago")


def found(args: argparse.Namespace) -> tuple[Found, str]:
    """Ask as the options say; troubles and notes are told on stderr. Also whose jobs are meant, empty if nobody said.
    Raises JobError, SitesUnreachable, SitesRefused."""
    from vmjob.cli.report import choose, say
    from vmjob.sites import sources
    from vmjob.sites.read import read

    settings = sources.chosen(args.sources, "--sites" if hasattr(args, "to") else "--from")
    answer = read(settings.sources, choose(json=args.json), fresh=args.fresh)
    for trouble in answer.troubles:
        say(f"{trouble.message}\n  → {trouble.hint}" if trouble.hint else trouble.message)
    for note in answer.notes:
        say(note)
    return answer, settings.vo if args.vo is None else args.vo
