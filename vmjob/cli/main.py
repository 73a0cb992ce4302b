"""The command line: parse, call, print. The only place that prints and exits."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Optional

from vmjob.core.errors import JobError, VmjobError
from vmjob.core.escapes import shown

_UNTIL_RUN = 10.0  # seconds; importing takes so long on a node that is very busy
_EXAMPLES = """\
the first minutes:
  vmjob doctor                              what can this machine do?
  vmjob image micro                         build a 16 MB image to try things with
  vmjob run --image micro -- uname -a       run a program in it
  vmjob run examples/pythia/job.yaml        run a job from a file
  vmjob submit job.yaml --to condor -n 10   send it to an HTCondor pool or a compute element
  vmjob pack job.yaml -o payload.tar        make it input for any other batch system

Each verb explains itself: vmjob run --help. Exit statuses: docs/user.md.
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong like every other error; argparse's own status 2 would look like the program's."""

    def error(self, message: str) -> NoReturn:
        hint = f"{self.prog} --help shows the options"
        if message.startswith("unrecognized"):
            hint += "; a program and its arguments go after --"
        raise JobError(message, hint)


class _Version(argparse.Action):
    def __call__(self, *_args: object, **_more: object) -> NoReturn:
        from vmjob.job.built import version

        print(version().lines())
        raise SystemExit(0)


def parser(only: str = "") -> argparse.ArgumentParser:
    """The whole command line, or that of the verb ``only``, with the others listed: so a start is quick. Handlers are
    imported when they are called."""
    from vmjob.cli.verbs import Verbs

    top = Parser(
        prog="vmjob", description="Run a virtual machine image as an ordinary grid job.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action=_Version, nargs=0,
                     help="print the version, the commit it was made from, and what vmjob.pyz carries")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, action=Verbs, parser_class=Parser)
    assert isinstance(verbs, Verbs)
    verbs.fill(only)
    return top


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; returns the exit status. Every error a user can cause is one line, a hint and its status."""
    from vmjob.core.interrupt import Signals

    _open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    command: Optional[list[str]] = None
    if "--" in words:  # what follows is the program's own, and no option of ours
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1:]
    if not words:
        parser("--help").print_help()
        return JobError.status
    try:
        args = parser(words[0]).parse_args(words)
        args.command = command
        _logging(getattr(args, "verbose", 0))
        from vmjob.cli.report import Tame

        # strangers' names are shown escaped, whoever prints them; a signal is an error like any other: what was begun
        # is undone. Before a run it waits for one that can tell it
        patience = _UNTIL_RUN if words[0] in ("run", "slot-run") else 0.0
        with contextlib.redirect_stdout(Tame(sys.stdout)), Signals(patience) as signals:
            status: int = args.handler(args)
        if not signals.decided:  # what a run ended with stands, whether its words can be written or not
            sys.stdout.flush()
        return status
    except VmjobError as error:
        if words[0] == "slot-run":
            from vmjob.run.slot_run import not_begun

            not_begun(words, error)
        return tell(error, "--json" in words)
    except BrokenPipeError:  # whoever read our list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        from vmjob.run.outcome import failure_from_os

        return tell(failure_from_os(error), "--json" in words)


def _open_streams() -> None:
    """Closed standard streams would make our own files take their numbers, and every print fail."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def tell(error: VmjobError, json: bool = False) -> int:
    """Print one error for people (and as JSON for programs); returns its exit status."""
    from vmjob.cli.report import say, show

    say(error.message)
    if error.hint:
        say(f"→ {error.hint}")
    if json:
        import json as codec

        show(codec.dumps({"failure": {"kind": error.kind, "message": error.message, "hint": error.hint,
                                       "status": error.status, "transient": error.transient}}))
    return error.status


def _logging(verbose: int) -> None:
    import logging

    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    class Tame(logging.Formatter):
        """Some of what is logged are names of strangers."""

        def formatMessage(self, record: logging.LogRecord) -> str:
            return shown(super().formatMessage(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Tame("vmjob: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("qemu").setLevel(logging.CRITICAL if verbose < 3 else logging.DEBUG)


if __name__ == "__main__":
    sys.exit(main())
