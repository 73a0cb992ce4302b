"""Results of ended jobs: brought from the target, unpacked, each job's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.core.errors import OutputMissing, OutputRefused, VmjobError
from vmjob.core.files import real_kind
from vmjob.core.ownnames import STDERR, STDOUT
from vmjob.core.pool_errors import TransferFailed
from vmjob.core.progress import Reporter
from vmjob.core.units import format_size
from vmjob.run.outcome import failure_from_os

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor
    from vmjob.batch.jobs import JobInfo

_GROUP = 50  # jobs whose results are on their way at once
_LOST = 3  # so many in a row without results mean that the schedd gives none
_DOCUMENT = 16 * 2**20  # bytes of a result.json; ours have a few MiB at most


@dataclass(frozen=True)
class Fetched:
    """What came of one job: its result.json, or why its results were not taken."""

    job: JobInfo
    document: dict[str, Any]
    failure: Optional[VmjobError] = None


def fetch(batch: Condor, jobs: Sequence[JobInfo], folder: Path, reporter: Reporter, *, flat: bool = False,
          keep: bool = False) -> list[Fetched]:
    """Bring the results of ended jobs into ``folder``/PROC (``flat``: into ``folder`` itself).

    What a guest made is unpacked as distrustfully as on the node; results that are refused, or cannot be taken, stay
    where they are, and cost no other job's. Unless ``keep``, the jobs of the others may leave the queue then. Raises
    TransferFailed, ScratchFull, SlotError where nothing can be fetched.
    """
    from vmjob.core.scratch import scratch

    folder.mkdir(parents=True, exist_ok=True)
    found: list[Fetched] = []
    with scratch(folder) as here, reporter.bar("fetch", len(jobs), "job") as bar:
        for start in range(0, len(jobs), _GROUP):
            some = jobs[start:start + _GROUP]
            lost = _bring(batch, some, here)
            for job in some:
                target = folder if flat else folder / str(job.id.proc)
                found.append(Fetched(job, {}, lost[job]) if job in lost else _take(job, here, target, reporter))
                bar.advance(1)
    if not keep:
        batch.fetched([one.job for one in found if not one.failure])
    return found


def _bring(batch: Condor, jobs: Sequence[JobInfo], here: Path) -> dict[JobInfo, VmjobError]:
    """The files of these jobs into the folder ``here``; those that cannot be brought, and why. Raises TransferFailed
    where none can."""
    kinds = ("results", "out", "err")
    lost: dict[JobInfo, VmjobError] = {}
    try:
        batch.bring(jobs, kinds, here)
    except TransferFailed as failure:  # one lacks a file: the others come without it
        for number, job in enumerate(jobs):
            if len(jobs) == 1 or number == len(lost) == _LOST:
                raise failure from None
            try:
                batch.bring([job], kinds, here)
            except TransferFailed as own:
                lost[job] = own
        if len(lost) == len(jobs):
            raise failure from None
    return lost


def _take(job: JobInfo, here: Path, target: Path, reporter: Reporter) -> Fetched:
    """One job's files out of the folder ``here`` into ``target``."""
    from vmjob.batch.condor import file_name
    from vmjob.core.scratch import claim

    archive = here / file_name("results", job.id)
    try:
        with claim(target):
            document = _unpack(archive, target, reporter)
            own = document["outputs"]
            for kind, name in (("out", STDOUT), ("err", STDERR)):
                # the job's own files may be called so, where an older vmjob ran it
                if name in own or real_kind(target / name) == "folder":
                    name = f"vmjob-{name}"
                if name not in own and real_kind(target / name) != "folder":
                    (here / file_name(kind, job.id)).replace(target / name)
        return Fetched(job, document)
    except VmjobError as failure:
        return Fetched(job, {}, failure)
    except OSError as trouble:
        return Fetched(job, {}, failure_from_os(trouble))
    finally:
        archive.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path, reporter: Reporter) -> dict[str, Any]:
    import json

    from vmjob.core import schema
    from vmjob.stage.archive.unpack import unpack_results

    unpack_results(archive, folder, reporter)
    path = folder / "result.json"
    try:
        if path.stat().st_size > _DOCUMENT:
            raise OutputRefused(f"{path}: has more than {format_size(_DOCUMENT)}",
                                "the job's node is at fault; submit again")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError as missing:
        raise OutputMissing(f"{folder}: no result.json came back: a missing result is a failure",
                            "see stderr.txt there, and vmjob status") from missing
    except (OSError, ValueError, RecursionError) as broken:
        raise OutputRefused(f"{path}: cannot be read: {broken}",
                            "the job's node or its disk is at fault; submit again") from broken
    body: dict[str, Any] = schema.check(document, "result", str(path), OutputRefused)
    if body["outcome"] == "begun":  # nobody lived to say more: its failure says so
        body["outcome"] = "failed"
    return body


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")
