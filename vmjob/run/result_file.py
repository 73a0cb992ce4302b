"""``result.json`` in a results folder: what stands there is of this run from its first moment on, and is what became of
it at its last."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vmjob.core.errors import ScratchFull, VmjobError
from vmjob.core.files import FULL, RESULT_FILES, whole, write_whole
from vmjob.core.node_errors import Killed
from vmjob.core.result import Result
from vmjob.run.outcome import failed, failure_from_os, failure_of

log = logging.getLogger("vmjob.run")

RESULT = RESULT_FILES[0]
_EARLIER = ".vmjob-earlier.json"  # where the wrapper moves an earlier run's
_MOST = 64 * 2**20  # bytes of an earlier result.json
_ROOM = 32 * 2**10  # bytes that the first result.json takes, so that the last one has room on a full disk


def begun(job: str = "") -> Result:
    """What stands in result.json while a run goes on: if it is there at the end, nobody lived to say more."""
    killed = Killed("the run was killed, or its node went down, before it could say how it ended",
                    "see the batch system's log, and the node's for its memory: another try may do", stage="start")
    now = round(time.time(), 3)
    return Result(job=job, outcome="begun", status=killed.status, failure=failure_of(killed), started=now, ended=now,
                  host=socket.gethostname())


def refused(error: VmjobError | OSError, folder: Path, job: str) -> None:
    """The result of a run that did not begin, into ``folder`` if nobody else runs there. Never raises."""
    from vmjob.core.scratch import claim

    with suppress(VmjobError, OSError), claim(folder):
        keep_result(replace(failed(error), job=job), folder)


def keep_result(result: Result, folder: Path) -> Result:
    """result.json into ``folder``, whole or not at all. Where it cannot be written, a result that says so: what
    nobody can read is no success."""
    path = folder / RESULT
    body = (json.dumps(result.to_json(), indent=1) + "\n").encode()
    try:
        try:
            write_whole(path, body.ljust(_ROOM) if result.outcome == "begun" else body)
        except OSError as refused:
            if refused.errno not in FULL or not _over(path, body):
                raise
        return result
    except OSError as refused:
        log.error("%s: %s cannot be written: %s", folder, RESULT, refused.strerror)
        failure = failure_from_os(refused)
        told = result if result.failure else replace(result, outcome="failed", status=failure.status,
                                                     failure=failure_of(failure))
        short = replace(told, outputs=(), console_tail=(), notes=(), staged=())
        _over(path, (json.dumps(short.to_json()) + "\n").encode())
        return told


def _over(path: Path, body: bytes) -> bool:
    """Write over the file, which takes no more room then; False where that is not enough, or there is none."""
    try:
        opened = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(opened).st_size
            if len(body) > size:
                return False
            os.pwrite(opened, body.ljust(size), 0)
            return True
        finally:
            os.close(opened)
    except OSError:
        return False


def begin(folder: Path, job: str, wanted: Callable[[str], bool]) -> None:
    """Take away what would be taken for this run's own: an earlier run's result.json and console.log, and of the
    outputs that it lists those that this run may bring (``wanted``); then say that a run has begun. Raises ScratchFull
    and other HostErrors: a result that nobody could write is not worth a run. The caller has claimed ``folder``."""
    try:
        for name in (*_listed(folder / RESULT), *_listed(folder / _EARLIER)):
            if wanted(name):
                _unlink(folder, name)
        for name in (*RESULT_FILES, _EARLIER):
            with suppress(FileNotFoundError, IsADirectoryError):
                (folder / name).unlink()
        spoken = keep_result(begun(job), folder)
    except OSError as refused:
        raise failure_from_os(refused) from refused
    if spoken.outcome != "begun":
        assert spoken.failure
        raise ScratchFull(f"{folder}: {RESULT} cannot be written", "free space there, or name another: --results")


def _listed(path: Path) -> tuple[str, ...]:
    """The outputs that a result.json of ours lists; none where it is something else."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(opened, "rb") as file:
            body = json.loads(file.read(_MOST))
        names = body["outputs"] if body["schema"] == 1 and "vmjob" in body else []
        return tuple(name for name in names if isinstance(name, str))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()


def _unlink(folder: Path, name: str) -> None:
    """Remove a file or link below ``folder``, through no link on the way."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        os.unlink(parts[-1], dir_fd=here)
    except OSError:  # it went another way, or is a folder now
        pass
    finally:
        os.close(here)


def keep_console(folder: Path, results: Path) -> None:
    """console.log of the run in ``folder`` into the results. Never raises: what the run itself has to tell counts."""
    console = folder / "console.log"
    if not console.is_file():
        return
    try:
        with whole(results / console.name) as spare:
            shutil.copyfile(console, spare)
    except OSError as refused:
        log.warning("console.log cannot be kept: %s", refused)
