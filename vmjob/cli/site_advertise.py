"""``vmjob site advertise``: what the startd's hook (wrappers/vmjob-startd.sh) prints; ``vmjob site hook``: its
files."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from vmjob.core.files import whole

if TYPE_CHECKING:
    from vmjob.node.advertise import Answer

_ADVERTISE = """\
examples:
  vmjob site advertise           lines for a STARTD_CRON job of HTCondor
  vmjob site advertise --json    for the publisher (nodes: files: in site.yaml) and for monitoring

The exit status is 0 also for a node that takes no virtual machines: it says so, and why.
"""
_HOOK = """\
examples:
  vmjob site hook /etc/vmjob --dry-run     what would be written?
  vmjob site hook /etc/vmjob               then, as root: cp /etc/vmjob/99-vmjob-node.conf /etc/condor/config.d/
"""


def add(nouns: Any) -> None:
    """The sub-verbs ``advertise`` and ``hook``."""
    one = nouns.add_parser("advertise", help="what this node does with virtual machines, for HTCondor and publishers",
                           description="Print what this node does with virtual machines, as attributes of its machine "
                                       "ad. Runs a test guest where something speaks for it.",
                           epilog=_ADVERTISE, formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("--json", action="store_true", help="print the node's ad as JSON (vmjob schema node-ad)")
    one.add_argument("--users", metavar="N", type=int, default=2,
                     help="offline where virtual machines of N users fail though a test guest runs (default 2; 1 where "
                          "all jobs run as one user)")
    one.add_argument("--valid", metavar="SECONDS", type=int, default=900,
                     help="what nobody renews for so long is no longer true (default 900)")
    one.add_argument("--deadline", metavar="SECONDS", type=int, default=60,
                     help="offline where it takes longer to find out (default 60)")
    one.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    one.set_defaults(handler=advertise)
    two = nouns.add_parser("hook", help="write the files of HTCondor's startd hook into a folder",
                           description="Write vmjob.pyz, the startd's hook and a snippet of HTCondor's configuration "
                                       "into a folder; it is made if it is missing.", epilog=_HOOK,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    two.add_argument("folder", metavar="FOLDER", help="where, such as /etc/vmjob")
    two.add_argument("--dry-run", action="store_true", help="only tell what would be written")
    two.add_argument("--json", action="store_true", help="print the names as JSON")
    two.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    two.set_defaults(handler=hook)


def advertise(args: argparse.Namespace) -> int:
    """All at once, at the end: what is cut off says nothing."""
    from vmjob.core.errors import JobError

    for name in ("users", "valid", "deadline"):
        if not 0 < getattr(args, name) < 10**6:
            raise JobError(f"--{name} {getattr(args, name)}: out of range", f"--{name} is a number above 0")
    found = _in_time(args)
    if args.json:
        import json

        from vmjob.ads.node_ad import to_json
        from vmjob.node.advertise import named

        text = json.dumps(to_json(named(found.ad)), indent=1)
    else:
        from vmjob.ads.node_ad import node_ad_lines

        text = "\n".join(node_ad_lines(found.ad, found.overhead, found.guest))
    sys.stdout.write(text + "\n")
    return 0


def _in_time(args: argparse.Namespace) -> Answer:
    """The answer, or one that says why there is none."""
    from vmjob.core.errors import Interrupted
    from vmjob.node import advertise as flow

    class Late(BaseException):
        """No error like others: nobody on the way takes it for an answer of the node's."""

    def late(_number: int, _frame: Optional[FrameType]) -> NoReturn:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, args.deadline)
        return flow.answer(users=args.users, validity=args.valid)
    except Late:
        return flow.silent(f"it took more than {args.deadline} s to find out what this node can do", args.valid)
    except Interrupted:
        raise  # nobody listens any more
    except Exception as failure:  # a bug of ours too
        return flow.silent(f"vmjob site advertise: {failure or type(failure).__name__}", args.valid)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def hook(args: argparse.Namespace) -> int:
    """The files of the hook. Raises JobError, OSError."""
    import json
    import shutil

    from vmjob.cli.report import say
    from vmjob.core.errors import JobError
    from vmjob.core.ownnames import PYZ, WRAPPER
    from vmjob.job.pyz import HOOK, SNIPPET, carried_pyz, wrapper_text

    folder, made = Path(args.folder), False
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink() or not folder.absolute().parent.is_dir():
            raise JobError(f"{folder}: no such folder", f"make it: install -d -m 0755 {folder}")
        made = True
        if not args.dry_run:
            folder.mkdir(0o755)
            folder.chmod(0o755)  # whatever the umask is
    if not args.dry_run:
        _remember(folder, made)
    paths = [folder / name for name in (PYZ, WRAPPER, HOOK, SNIPPET)]
    for path in paths if not args.dry_run else ():
        # one that runs goes on with what it has
        with whole(path, mode=0o644 if path.name in (PYZ, SNIPPET) else 0o755) as spare:
            if path.name == PYZ:
                shutil.copyfile(carried_pyz(), spare)
            else:
                text = wrapper_text(path.name)
                if path.name == SNIPPET:
                    text = text.replace(b"/etc/vmjob/", f"{folder.absolute()}/".encode())
                spare.write_bytes(text)
    if args.json:
        print(json.dumps([str(path) for path in paths]))
    else:
        for path in paths:
            print(f"{'would write' if args.dry_run else 'wrote'} {path}")
        say(f"next, as root: cp {folder / SNIPPET} /etc/condor/config.d/ && condor_reconfig")
    return 0


def _remember(folder: Path, made: bool) -> None:
    """For vmjob site remove, on a node: it is root's, and has a folder for it. Raises NodeUnchanged."""
    import os

    from vmjob.job.pyz import wrapper_text
    from vmjob.node.remove import hooks
    from vmjob.node.tree import Tree

    if os.geteuid() == 0:
        files = tuple((name, (hooks.digest(name, wrapper_text(name)),)) for name in hooks.NAMES if name != hooks.PYZ)
        hooks.remember(Tree(), hooks.Hook(os.path.normpath(folder.absolute()), made, files))
