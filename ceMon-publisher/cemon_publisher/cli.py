"""vmjob-publish: parse, call, print. All or nothing: stdout, or the file of --out, gets a whole rendering, or none."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from cemon_publisher import output
from cemon_publisher.render import FOLDERS, RENDERINGS, files, render
from vmjob.cli.main import Parser
from vmjob.core.errors import HostError, Interrupted, JobError, VmjobError
from vmjob.core.progress import Bar, Reporter

if TYPE_CHECKING:
    from vmjob.ads.site_ad import SiteAd

_EXAMPLES = """\
examples:
  vmjob-publish glue2 --example                     what it looks like, for a made-up site
  vmjob-publish json --out /var/www/html/vmjob.json a file that changes as a whole, from cron
  vmjob-publish glue2 --last-good /var/cache/vmjob-publish
                                                    for a BDII: should something fail, what was good before, until it
                                                    expires

Nothing is printed, and no file changed, unless all of it can be: else there is one message on stderr, and its exit
status (docs/site-admin.md). Warnings, such as of a list that has expired, are on stderr too; the status is 0 then.
"""


def parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {name:<11} {what}" for name, (_, what) in RENDERINGS.items())
    top = Parser(prog="vmjob-publish", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EXAMPLES,
                 description="Tell the grid that this site runs virtual machines, and which images. Renderings:\n\n"
                             + kinds)
    top.add_argument("rendering", metavar="RENDERING", choices=list(RENDERINGS), help="one of those above")
    top.add_argument("--config", metavar="FILE", help="the site's (default: /etc/vmjob/site.yaml)")
    top.add_argument("--policy", metavar="FILE", action="append", default=[],
                     help="this policy instead of those of this machine (repeatable)")
    top.add_argument("--out", metavar="PATH", help="into this file, as a whole; arc-rte and cemon: into this folder")
    top.add_argument("--last-good", metavar="FOLDER", help="keep there what was printed, and print it again, until it "
                     "expires, when something fails; the exit status tells")
    top.add_argument("--example", action="store_true", help="a made-up site, to see what it looks like")
    top.add_argument("--quiet", "-q", action="store_true", help="warnings only with a failure, for cron")
    top.add_argument("--json", action="store_true", help="warnings and the failure as one JSON document on stderr")
    return top


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; returns the exit status."""
    from vmjob.cli.main import _open_streams
    from vmjob.core.interrupt import Signals

    _open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    told = _Told("--json" in words)
    if not words:
        parser().print_help()
        return JobError.status
    failure: Optional[VmjobError] = None
    try:
        args = parser().parse_args(words)
        told.quiet = args.quiet
        with Signals():
            failure = _publish(args, told)
    except Exception as error:
        failure = _named(error)
    told.end(failure)
    return failure.status if failure else 0


def _publish(args: argparse.Namespace, told: _Told) -> Optional[VmjobError]:
    """None, or what went wrong though there is an output: the last good one."""
    empty = [f"--{key.replace('_', '-')}" for key in ("config", "out", "last_good") if getattr(args, key) == ""]
    if empty or "" in args.policy:
        raise JobError(f"{[*empty, '--policy'][0]}: it is empty", "name a file or a folder; is a variable not set?")
    if args.out and args.last_good:
        raise JobError("--out and --last-good: not both", "a file of --out stays as it is when something fails")
    now = time.time()
    keep = Path(args.last_good) if args.last_good and not args.example else None
    try:
        ad = _ad(args, now, told)
        text = "" if args.out and args.rendering in FOLDERS else render(args.rendering, ad)
    except Exception as failed:
        good = output.kept(keep, args.rendering, time.time()) if keep else None
        if good is None:
            raise
        _print(good.text)
        told.note(f"printed what was good at {_clock(good.created)}; it counts until {_clock(good.expires)}")
        return _named(failed)
    if args.out and args.rendering in FOLDERS:
        output.write_folder(Path(args.out), files(args.rendering, ad))
        return None
    if args.out:
        output.write(Path(args.out), text)
        return None
    _print(text)  # before it is kept: a disk that is full is no reason to publish nothing
    if keep:
        output.keep(keep, args.rendering, output.Kept(text, ad.created, ad.expires))
    return None


def _ad(args: argparse.Namespace, now: float, told: _Told) -> SiteAd:
    if args.example:
        from cemon_publisher.example import example

        return example(int(now))
    from cemon_publisher.model import site_ad

    return site_ad(Path(args.config) if args.config else None, [Path(one) for one in args.policy] or None, now, told)


def _named(failed: Exception) -> VmjobError:
    """A failure as one that has a status; what is none of those is a bug, and told in full."""
    if isinstance(failed, Interrupted):  # that there is a slot is news here
        return Interrupted(f"it was told to end: {failed.message}", "what was published before is as it was; run it "
                           "again")
    if isinstance(failed, VmjobError):
        return failed
    if isinstance(failed, OSError):
        return HostError(f"{failed.filename or 'stdout'}: {failed.strerror or failed}",
                         "check that it exists, and who may read and write it")
    import traceback

    bug = traceback.format_exception(type(failed), failed, failed.__traceback__)
    return VmjobError(f"{type(failed).__name__}: {failed}", "this is a bug: please report it, with the command and\n"
                      + "".join(bug))


def _print(text: str) -> None:
    """All of it, or OSError: who reads us must not take half of it for good."""
    data = text.encode()
    while data:
        data = data[os.write(1, data):]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class _Told(Reporter):
    """What people should see, on stderr: lines as they come, with ``quiet`` only where something failed; or one JSON
    document at the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.quiet = False
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        if not (self.as_json or self.quiet):
            _say(text)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        from vmjob.cli.report import choose

        return choose(self.quiet, self.as_json).bar(name, total, unit)

    def end(self, failure: Optional[VmjobError]) -> None:
        if self.as_json:
            told = failure and {"kind": failure.kind, "message": failure.message, "hint": failure.hint,
                                "status": failure.status, "transient": failure.transient}
            with contextlib.suppress(OSError):
                print(json.dumps({"notes": self.notes, "failure": told}), file=sys.stderr, flush=True)
        elif failure:
            for text in self.notes if self.quiet else ():
                _say(text)
            _say(failure.message)
            for line in failure.hint.split("\n") if failure.hint else ():
                _say(f"→ {line}")


def _say(text: str) -> None:
    """Strangers' names in it can neither steer a terminal nor begin a line."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in text)
    with contextlib.suppress(OSError):
        print(f"vmjob-publish: {line}", file=sys.stderr, flush=True)
