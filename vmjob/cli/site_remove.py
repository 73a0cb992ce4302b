"""``vmjob site remove``: all that vmjob has left on a node goes, and nothing else."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli.site_options import changing, noun, tree_of

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from vmjob.node.remove.plan import Removal

_EXAMPLES = """\
examples:
  vmjob site remove --dry-run              what would go? Any user may ask
  vmjob site remove                        as root
  vmjob site remove --spool --store        with usage records that were not sent, the ledger, and the site's images
  vmjob site remove --hook /srv/vmjob      with the hook's files in a folder that vmjob 0.1.0 has recorded nowhere
  vmjob site remove --root /srv/node-image --dry-run

Undone is what site enable-kvm and site hook did, by whatever version of vmjob, and what jobs left in /var/lib/vmjob.
What an admin wrote stays and is named: policies, site.yaml, cron files, files that were changed. While a virtual
machine runs on the node nothing is removed. Killed, a second run finishes.
"""


def add(nouns: Any) -> None:
    """The sub-verb ``remove``."""
    one = noun(nouns, "remove", "undo all that vmjob ever changed on this node", _EXAMPLES, remove)
    one.add_argument("--spool", action="store_true", help="remove usage records too, sent or not, and their ledger")
    one.add_argument("--store", action="store_true", help="remove the site's image store, /var/lib/vmjob/store, too")
    one.add_argument("--hook", metavar="FOLDER", action="append", default=[], dest="hooks",
                     help="one more folder with what vmjob site hook wrote (repeatable)")
    changing(one)


def remove(args: argparse.Namespace) -> int:
    """Print the diff, then apply it. Raises NodeUnchanged."""
    from vmjob.cli.report import say
    from vmjob.node.enable import apply
    from vmjob.node.remove import apply as removing
    from vmjob.node.remove import plan

    tree = tree_of(args.root)
    notes: list[str] = []
    found = removing.look(tree, args.hooks, notes)
    spool: Optional[PurePosixPath] = found.spool if args.spool else None

    def work_out() -> Removal:
        return plan.remove(removing.look(tree, args.hooks, [], sizes=False), args.spool, args.store)

    wanted = plan.remove(found, args.spool, args.store)
    diff, changed = wanted.diff(), not args.dry_run and not wanted.empty
    living = "" if wanted.empty else removing.refusal(tree, spool)
    if changed and not apply.may(tree):
        say("refused: only root can change this node. What would change:")
    if not args.json:
        print(diff or "nothing of vmjob is left\n", end="", flush=True)
    if changed:
        notes += removing.apply(tree, wanted, work_out, spool)
        notes += removing.hints(wanted)
    elif living:
        notes.append(f"it would be refused now: {living}")
    if args.json:
        print(json.dumps({"changed": changed, "diff": diff, "notes": notes, "kept": wanted.kept}, indent=1))
    for note in notes:
        say(note)
    for one in wanted.kept:
        say(f"stays: {one}")
    if diff:
        say("nothing was changed (--dry-run)" if args.dry_run else "done")
    return 0
