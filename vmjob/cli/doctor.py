"""``vmjob doctor``: what this machine can do, line by line, each with the next action."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmjob.cli.options import verb, verbose
from vmjob.cli.verbs import VERBS
from vmjob.core import config
from vmjob.core.config import default_scratch

if TYPE_CHECKING:
    from vmjob.node.doctor import Check

_SIGNS = {"ok": ("ok     ", "32"), "warning": ("warning", "33"), "failure": ("FAILURE", "31")}


def add_verbs(verbs: Any) -> None:
    """doctor."""
    one = verb(verbs, "doctor", VERBS["doctor"].help,
                   "example:\n  vmjob doctor\n  vmjob doctor --json\n", doctor)
    one.add_argument("--json", action="store_true", help="print the checks as JSON")
    one.add_argument("--fresh", action="store_true", help="ask again instead of using remembered answers")
    verbose(one)


def doctor(args: argparse.Namespace) -> int:
    """Print the checks; the status is 0 when a VM can run here at all."""
    from vmjob.node.doctor import FAILURE, examine, worst

    if args.fresh:
        (config.cache_dir() / "probe.json").unlink(missing_ok=True)
    checks = examine(default_scratch())
    failed = worst(checks) == FAILURE
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
        return 230 if failed else 0
    print("\n".join(lines(checks, sys.stdout.isatty())))
    print("a VM cannot run here yet" if failed else "ready: vmjob image micro && vmjob run --image micro -- uname -a")
    return 230 if failed else 0


def lines(checks: Sequence[Check], colour: bool) -> Iterator[str]:
    """The checks as people read them, each with what to do."""
    for check in checks:
        sign, code = _SIGNS[check.level]
        yield f"{f'{chr(27)}[{code}m{sign}{chr(27)}[0m' if colour else sign}  {check.name:<12} {check.text}"
        if check.action and check.level != "ok":
            yield f"{'':<9}{'':<12} → {check.action}"
