"""Does a target answer at all? HTCondor's bindings wait for ever for one that takes connections and says nothing."""

from __future__ import annotations

import json
import time

from vmjob import pool_errors, process
from vmjob.batch.pool import Pool
from vmjob.batch.targets import Target
from vmjob.errors import VmjobError
from vmjob.pool_errors import PoolError, PoolUnreachable
from vmjob.progress import Reporter

PATIENCE = 20.0  # seconds


def check(target: Target, reporter: Reporter, patience: float = PATIENCE) -> None:
    """Ask collector and schedd who we are to them, in a child that is gone when this returns. Raises PoolUnreachable
    where they have not said so within ``patience`` seconds; PoolRefused and PoolError as they do."""
    began = time.monotonic()
    with reporter.bar(f"ask {target.name}", patience, "s") as bar:

        def look(_: int) -> None:
            waited = time.monotonic() - began
            bar.set(min(waited, patience))
            if waited > patience:
                raise PoolUnreachable(f"{target.place} takes connections and does not answer within {patience:.0f} s",
                                      "its daemons stand still, or something on the way drops what they say; try again "
                                      "later, or tell the site")

        said = process.in_child(lambda: _ask(target), look, 0.05)
    if said:
        raise _failure(said, target)


def _ask(target: Target) -> None:
    """In the child."""
    try:
        assert Pool(target.place).user is not None
    except VmjobError as failure:
        raise RuntimeError(json.dumps([failure.kind, failure.message[:1000], failure.hint[:500]])) from failure


def _failure(said: str, target: Target) -> VmjobError:
    try:
        kind, message, hint = json.loads(said)
        found = getattr(pool_errors, kind, VmjobError)(message, hint)
        assert isinstance(found, VmjobError)
        return found
    except (ValueError, TypeError, RecursionError):
        return PoolError(f"{target.place}: {said}", "vmjob -vv shows more")
