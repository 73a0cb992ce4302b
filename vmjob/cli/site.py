"""``vmjob site``: for the admins of sites. Each sub-verb has a function that adds it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.cli.site_options import changing, noun, tree_of

if TYPE_CHECKING:
    from vmjob.node.doctor import Check
    from vmjob.node.enable.plan import Plan
    from vmjob.node.pool_view import View
    from vmjob.node.tree import Tree

_EXAMPLES = """\
examples:
  vmjob site check                                    what does this node lack for virtual machines?
  vmjob site enable-kvm --users alice,bob --dry-run   what would change, to let these two use KVM?
  vmjob site disable                                  undo what enable-kvm did
  vmjob site remove --dry-run                         what would go, if all of vmjob left this node?
"""
_CHECK = """\
examples:
  vmjob site check                            this node, and all nodes of its HTCondor pool
  vmjob site check --quiet                    only what is not well; nothing printed where all is (for cron)
  vmjob site check --pool cm.example.org      the nodes of this pool
  vmjob site check --no-pool --json           this node alone, for programs

The exit status is 0 where virtual machines run on this node, well or not so well, and 230 where they cannot,
or where the pool named by --pool does not answer.
"""
_ENABLE = """\
examples:
  vmjob site enable-kvm --users alice,bob --dry-run
  vmjob site enable-kvm --map /etc/condor-ce/mapfiles.d --map /etc/grid-security/grid-mapfile
  vmjob site enable-kvm --map users.txt --group vmjob --root /srv/node-image

A map is an HTCondor-CE mapfile (METHOD PRINCIPAL USER), a grid-mapfile ("DN" USER; .atlas stands for atlas001,
atlas002 and so on), or a list of accounts, one a line; a folder stands for the files in it. Accounts that this node
does not have are left out, and told. What is done a second time changes nothing; vmjob site disable undoes it.
"""
_DISABLE = """\
examples:
  vmjob site disable --dry-run
  vmjob site disable

Only what vmjob site enable-kvm did on this node is undone (it is in /var/lib/vmjob/enabled.json): who was in the group
before stays in it, and a file that was changed since stays and is named.
"""


def add_verbs(verbs: Any) -> None:
    """The verb ``site`` with its own verbs."""
    site = verbs.add_parser("site", description="Let virtual machines into this node, and say so.", epilog=_EXAMPLES,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    nouns = site.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_check(nouns)
    _add_enable(nouns)
    _add_disable(nouns)
    from vmjob.cli import site_advertise, site_remove

    site_advertise.add(nouns)
    site_remove.add(nouns)


# ---------------------------------------------------------------- check


def _add_check(nouns: Any) -> None:
    one = noun(nouns, "check", "all that a node needs for virtual machines, with the fix of each fault", _CHECK, check)
    one.add_argument("-q", "--quiet", action="store_true", help="print only what is not well")
    one.add_argument("--fresh", action="store_true", help="test KVM again instead of using the remembered answer")
    pool = one.add_mutually_exclusive_group()
    pool.add_argument("--pool", metavar="HOST[:PORT]", help="the collector to ask for all nodes (default: where this "
                                                            "machine has an HTCondor, its pool's)")
    pool.add_argument("--no-pool", action="store_true", help="look at this node only")


def check(args: argparse.Namespace) -> int:
    """This node line by line, then every node of the pool; 230 where no VM can run here."""
    from dataclasses import asdict

    from vmjob.core import config
    from vmjob.core.config import default_scratch
    from vmjob.node import check as nodecheck
    from vmjob.node.doctor import FAILURE, worst

    if args.fresh:
        (config.cache_dir() / "probe.json").unlink(missing_ok=True)
    checks = nodecheck.examine(default_scratch())
    if not args.json:  # a pool may take its time
        _print_checks(checks, args.quiet)
    view, complaint = _pool(args)
    more = [complaint] if complaint else []
    failed = worst([*checks, *more]) == FAILURE
    if args.json:
        pool = view and {"pool": view.pool, "nodes": [asdict(one) for one in view.nodes], "silent": view.silent}
        print(json.dumps({"ok": not failed, "checks": [asdict(one) for one in checks + more], "pool": pool}, indent=1))
        return 230 if failed else 0
    _print_checks(more, args.quiet)
    if view:
        _print_view(view, args.quiet)
    return 230 if failed else 0


def _pool(args: argparse.Namespace) -> tuple[Optional[View], Optional[Check]]:
    """What the pool says of its nodes, or why it does not."""
    from vmjob.core.errors import VmjobError
    from vmjob.node import pool_view
    from vmjob.node.doctor import FAILURE, WARNING, Check

    if args.no_pool or not (args.pool or pool_view.here()):
        return None, None
    try:
        return pool_view.look(args.pool or ""), None
    except VmjobError as error:
        return None, Check("pool", FAILURE if args.pool else WARNING, error.message, error.hint)


def _print_checks(checks: Sequence[Check], quiet: bool) -> None:
    from vmjob.cli.doctor import lines
    from vmjob.node.doctor import OK

    for line in lines([one for one in checks if not quiet or one.level != OK], sys.stdout.isatty()):
        print(line, flush=True)


def _print_view(view: View, quiet: bool) -> None:
    """One line a node."""
    from vmjob.cli.tables import table

    rows = []
    for node in view.nodes:
        remark = "; ".join(filter(None, (node.offline, *node.problems)))
        if remark or not quiet:
            rows.append([node.machine, "yes" if node.has else "offline", node.accel, str(node.running), str(node.free),
                         node.version, remark or node.reason])
    rows += [[name, "", "", "", "", "", "says nothing of vmjob: no hook there (vmjob site hook writes it)"]
             for name in view.silent]
    if rows:
        print(f"\n{len(view.nodes) + len(view.silent)} nodes in {view.pool}"
              if not quiet else f"\nnodes in {view.pool} that are not well")
        print(table(["NODE", "VMS", "ACCEL", "RUNNING", "FREE", "VERSION", "REMARK"], rows))


# ---------------------------------------------------------------- enable-kvm, disable


def _add_enable(nouns: Any) -> None:
    one = noun(nouns, "enable-kvm", "let the jobs of some users use KVM on this node", _ENABLE, enable)
    one.add_argument("--group", metavar="GROUP", help="the group that may open /dev/kvm; made if it is missing "
                                                      "(default: kvm)")
    one.add_argument("--users", metavar="USER[,USER]", action="append", default=[], help="accounts to let in")
    one.add_argument("--map", metavar="FILE", action="append", default=[], dest="maps",
                     help="a compute element's map of users, a path on this machine also with --root (repeatable)")
    changing(one)


def _add_disable(nouns: Any) -> None:
    changing(noun(nouns, "disable", "undo on this node what enable-kvm did", _DISABLE, disable))


def enable(args: argparse.Namespace) -> int:
    """Print the diff, then apply it. Raises NodeUnchanged."""
    from vmjob.core.site_errors import NodeUnchanged
    from vmjob.node.enable import apply, plan

    tree = tree_of(args.root)
    notes: list[str] = []
    known = apply.users_of(tree)
    users = [who for part in args.users for who in part.split(",") if who]
    if not users and not args.maps:
        raise NodeUnchanged("whom to let in was not said", "name accounts with --users, or a compute element's --map")
    found = apply.chosen(users, [Path(name) for name in args.maps], known)
    wanted = [*found.users, *([apply.DAEMON] if apply.DAEMON in known else [])]
    notes += found.odd

    def work_out(notes: list[str]) -> Plan:
        state = apply.look(tree, args.group, apply.startd_text(tree), notes)
        return plan.enable(state, args.group or (state.record.group if state.record else "kvm"), wanted)

    return _change(args, tree, work_out, notes)


def disable(args: argparse.Namespace) -> int:
    """Print the diff, then apply it. Raises NodeUnchanged."""
    from vmjob.node.enable import apply, plan

    tree = tree_of(args.root)
    return _change(args, tree, lambda notes: plan.disable(apply.look(tree, None, "", notes)), [])


def _change(args: argparse.Namespace, tree: Tree, work_out: Any, notes: list[str]) -> int:
    from vmjob.cli.report import say
    from vmjob.node.enable import apply

    wanted: Plan = work_out(notes)
    diff = wanted.diff()
    notes += [*wanted.notes, *apply.hints(tree, wanted)]
    changed = not args.dry_run and not (wanted.empty and apply.recorded(tree, wanted))
    if changed and not apply.may(tree):
        say("refused: only root can change this node. What would change:")
    if not args.json:
        print(diff or "nothing to change", end="" if diff else "\n", flush=True)
    if changed:
        notes += apply.apply(tree, wanted, lambda: work_out([]))
    if args.json:
        print(json.dumps({"changed": changed and not wanted.empty, "diff": diff, "notes": notes}, indent=1))
    for note in notes:
        say(note)
    if diff:
        say("nothing was changed (--dry-run)" if args.dry_run else "done")
    return 0
