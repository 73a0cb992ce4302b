"""``slot-attach``: what ``vmjob console`` and ``vmjob ssh`` start beside a running job, by way of the wrapper."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from vmjob.cli.options import verbose

_WAIT = 30.0  # seconds for the run to begin: a batch system says "running" before the wrapper has made its folder


def add_verbs(verbs: Any) -> None:
    """slot-attach."""
    look = verbs.add_parser("slot-attach", description="Look into the guest of a running job; the wrapper calls this.")
    look.set_defaults(handler=slot_attach)
    look.add_argument("what", choices=("console", "shell"))
    look.add_argument("--scratch", metavar="DIR", help="folder where the run lives (default: the slot's scratch)")
    verbose(look)


def slot_attach(args: argparse.Namespace) -> int:
    """The guest's shell or console, for a person or a pipe on our own standard streams."""
    from vmjob.cli.report import say
    from vmjob.core.errors import Interrupted
    from vmjob.guest import attach
    from vmjob.slot.running import running

    folder = running(Path(args.scratch or os.environ.get("_CONDOR_SCRATCH_DIR") or "."), _WAIT, say)
    if args.what == "shell":
        return attach.shell(folder, say)
    try:
        attach.follow_console(folder)
    except Interrupted:  # Ctrl-C is how one stops looking
        return 0
    return 0
