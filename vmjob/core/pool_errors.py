"""Failures of the submit side, never a job's: pool or compute element. Their place is in the tree of errors.py."""

from __future__ import annotations

from vmjob.core.errors import VmjobError


class PoolError(VmjobError):
    """``unsure``: of a submission: its jobs may be in the queue all the same."""

    status = 190
    unsure = False


class PoolUnreachable(PoolError):
    status = 191
    transient = True


class PoolRefused(PoolError):
    status = 192


class PoolFull(PoolError):
    status = 193
    transient = True


class NoSlotFits(PoolError):
    status = 194


class NameTaken(PoolError):
    status = 195


class JobUnknown(PoolError):
    status = 196


class TransferFailed(PoolError):
    status = 197
    transient = True


class JobHeld(PoolError):
    status = 198


class JobsPending(PoolError):
    status = 199
    transient = True
