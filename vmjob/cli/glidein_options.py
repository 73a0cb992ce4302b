"""``vmjob glidein`` and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vmjob.cli.batch_options import _common, _to
from vmjob.cli.options import _verb
from vmjob.cli.verbs import VERBS

_KEEP_EXAMPLES = """\
examples:
  vmjob glidein keep worker.yaml --pool cm.vo.example.org --to condor-ce://ce.example.org --max 50
  vmjob glidein keep worker.yaml --to clemson --min 2 --max 50 --constraint 'Owner == "ada"'
  vmjob glidein keep worker.yaml --to clemson --max 50 --once --dry-run    what would it do now?
  vmjob glidein keep worker.yaml --to clemson --drain                      remove those that wait

worker.yaml is a job file with the key glidein: (vmjob schema job). As many glide-ins are kept at the target as the jobs
that are idle in the VO's pool need, within the limits. What became of each stands in NAME.glideins/glideins.jsonl, with
the logs of those that failed beside it. All else is asked of the two queues: a factory that is ended, in whatever way,
leaves its glide-ins at work, and goes on where it was when it is started again.
"""


def add_verbs(verbs: Any) -> None:
    """glidein keep, glidein status."""
    top = _verb(verbs, "glidein", VERBS["glidein"].help,
                "example:\n  vmjob glidein keep --help\n", None)
    actions = top.add_subparsers(dest="action", metavar="ACTION", required=True)
    keep = _verb(actions, "keep", "keep as many glide-ins at a target as the VO's pool asks for", _KEEP_EXAMPLES,
                 _later("keep"))
    _which(keep)
    keep.add_argument("--min", type=int, default=0, metavar="N", help="at least so many, jobs or not (default: 0)")
    keep.add_argument("--max", type=int, metavar="N", help="at most so many at the target")
    keep.add_argument("--most-at-once", type=int, default=10, metavar="N", help="new ones a cycle (default: 10)")
    keep.add_argument("--every", default="30s", metavar="TIME", help="length of a cycle (default: 30s)")
    keep.add_argument("--backoff", default="1m", metavar="TIME", help="nothing is submitted for so long after a "
                      "failure, then twice as long, up to half an hour (default: 1m)")
    keep.add_argument("--give-up", type=int, default=10, metavar="N",
                      help="end after so many failed tries in a row (default: 10)")
    keep.add_argument("--once", action="store_true", help="one cycle, for cron")
    keep.add_argument("--dry-run", action="store_true", help="one cycle that only says what it would do")
    keep.add_argument("--drain", action="store_true", help="submit nothing, remove those that wait, and end")

    status = _verb(actions, "status", "show what the pool asks for and what a factory's glide-ins do",
                   "example:\n  vmjob glidein status worker.yaml --to clemson\n", _later("status"))
    _which(status)


def _which(one: argparse.ArgumentParser) -> None:
    one.add_argument("job", metavar="JOB.yaml", help="job file with the key glidein:")
    one.add_argument("--pool", metavar="HOST[:PORT]",
                     help="collector of the VO's pool (default: the job's glidein.pool)")
    _to(one)
    one.add_argument("--schedd", default="", metavar="NAME", help="count the jobs of this schedd alone (default: of "
                     "all that the pool's collector knows)")
    one.add_argument("--constraint", default="", metavar="EXPR", help="ClassAd expression: count these jobs alone")
    one.add_argument("--results", metavar="DIR", help="folder for the logbook and logs (default: NAME.glideins)")
    _common(one)


def _later(function: str) -> Callable[[argparse.Namespace], int]:
    def call(args: argparse.Namespace) -> int:
        from vmjob.cli import glidein

        status: int = getattr(glidein, function)(args)
        return status

    return call
