"""What is known of a run while it goes on, and the Result it becomes whatever happens."""

from __future__ import annotations

import logging
import signal
import socket
import time
from pathlib import Path
from typing import Optional

from vmjob.core.errors import HostError, Interrupted, ScratchFull, SlotError, VmjobError, WalltimeOver
from vmjob.core.files import FULL
from vmjob.core.node_errors import ScratchLost, of_node
from vmjob.core.result import Failure, Result

log = logging.getLogger("vmjob.run")


def failure_of(error: VmjobError) -> Failure:
    """What the result tells of an error."""
    return Failure(stage=error.stage or "stage", kind=error.kind, status=error.status, message=error.message,
                   hint=error.hint, transient=error.transient)


def signal_of(status: Optional[int]) -> Optional[int]:
    """The signal that a shell's status 128+N tells of; None where there is no such signal."""
    if status is None or status <= 128:
        return None
    try:
        return int(signal.Signals(status - 128))
    except ValueError:
        return None


def failure_from_os(error: OSError) -> VmjobError:
    """An operating system's refusal as a named failure."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return ScratchFull(f"the disk of this node is full{where}",
                           "free space there, or name another folder: --scratch")
    hint = "check the permissions of the folder and that it exists"
    if isinstance(error, TimeoutError) and error.filename:  # of core.locks
        hint = f"fuser {error.filename} says which process has it: end that one, or let it go on (kill -CONT)"
    named = of_node(error) or HostError(f"{error.strerror or error}{where}", hint)
    named.__cause__ = error
    return named


def named(error: BaseException, folder: Optional[Path]) -> VmjobError:
    if isinstance(error, (Interrupted, WalltimeOver)):
        return error
    if folder and _lost(folder, error):
        return ScratchLost(f"the run's scratch folder {folder} was removed, or files in it, while the run went on",
                           "something tidies up on this node (tmpreaper, systemd-tmpfiles): it must leave "
                           f"{folder.name[:10]}* alone; another node may do")
    if isinstance(error, VmjobError):
        # what the system refused, where nobody could make more of it
        cause = error.__cause__ if type(error) in (SlotError, HostError) else None
        return (of_node(cause) if cause else None) or error
    if isinstance(error, OSError):
        return failure_from_os(error)
    found = of_node(error)
    if found is None:
        log.error("this is a bug in vmjob", exc_info=error)
        return VmjobError(f"bug in vmjob: {type(error).__name__}: {error}", "please report it with the lines above")
    return found


def _lost(folder: Path, error: BaseException) -> bool:
    """Has somebody else removed the folder, or the file of it that ``error`` misses?"""
    from vmjob.core.scratch import is_whole

    if not is_whole(folder):
        return True
    link: Optional[BaseException] = error
    for _ in range(10):
        if isinstance(link, FileNotFoundError) and link.filename and folder in Path(str(link.filename)).parents:
            return True
        link = link.__cause__ if link else None
    return False


def failed(error: BaseException, folder: Optional[Path] = None) -> Result:
    """The result of a run that did not come to be one."""
    cause, now = named(error, folder), round(time.time(), 3)
    return Result(job="", outcome="failed", status=cause.status, failure=failure_of(cause), started=now, ended=now,
                  host=socket.gethostname())
