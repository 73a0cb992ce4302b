"""The submit-side flow for batch systems: job + target → jobs in a queue, and their results back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from vmjob.batch.description import Parameters, Request, Submission, token_names
from vmjob.batch.nodes import Needs
from vmjob.core import config
from vmjob.core.errors import JobError, OutputMissing, OutputRefused, VmjobError
from vmjob.core.files import place, real_kind, write_secret
from vmjob.core.glideins import SYSTEM_DISK
from vmjob.core.model import Job, Manifest, Payload
from vmjob.core.ownnames import STDERR, STDOUT
from vmjob.core.pool_errors import TransferFailed
from vmjob.core.progress import Reporter
from vmjob.core.units import format_size
from vmjob.job import bundle, resolve
from vmjob.job.payload import INPUT, NAME, WRAPPER, list_name
from vmjob.job.pyz import PYZ
from vmjob.run.outcome import failure_from_os

if TYPE_CHECKING:
    from vmjob.batch.condor import Condor
    from vmjob.batch.jobs import JobInfo
    from vmjob.batch.targets import Target

_GROUP = 50  # jobs whose results are on their way at once
_LOST = 3  # so many in a row without results mean that the schedd gives none
_DOCUMENT = 16 * 2**20  # bytes of a result.json; ours have a few MiB at most
_SPARE_TIME = 15 * 60  # seconds beside the job's walltime: fetching the image, booting, the way back
_SPARE_DISK = 256 * 2**20  # bytes for the guest's own writes, where its image has a disk: 4 times as much


@dataclass(frozen=True)
class Submitted:
    """What ``submit_job`` did: the cluster's number at the target."""

    cluster: int
    jobs: int
    name: str
    target: str


@contextmanager
def packed(job: Job, base: Path, parameters: Parameters, reporter: Reporter,
           carry: bool = False) -> Iterator[tuple[Submission, Payload, Path]]:
    """The submission of ``job``, its payload, and a folder with the payload's files but the image's; gone at the end.
    ``carry``: as submit.carried. Raises ImageMissing, ImageError, InputMissing, JobError."""
    from vmjob.api import default_scratch
    from vmjob.core.scratch import scratch
    from vmjob.image.store.images import Store

    with scratch(default_scratch()) as folder:
        payload = resolve.resolve(job, base, Store(config.store_dir()), folder, reporter)
        payload = resolve.carried(payload, reporter, carry)
        payload = replace(payload, image_files=_by_digest(payload, folder))
        out = folder / "payload"
        out.mkdir()
        bundle.write_small(out, payload)
        if payload.input_archive:
            place(payload.input_archive, out / INPUT)
        yield _submission(payload, parameters, tuple(sorted(path.name for path in out.iterdir()))), payload, out


def _by_digest(payload: Payload, folder: Path) -> dict[str, Path]:
    """The image's files that travel, by role, each called by its digest, as nodes ask for it; where neither store nor
    cache could take them they have names of their own."""
    paths = dict(payload.image_files)
    for file in payload.manifest.files:
        if file.role in paths and paths[file.role].name != file.sha256:
            named = folder / file.sha256
            place(paths[file.role], named)
            paths[file.role] = named
    return paths


def at_target(job: Job, target: Target) -> Job:
    """``job`` as it goes to ``target``: a glide-in whose site nobody named is of that site."""
    if job.glidein is None or job.glidein.site:
        return job
    site = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"^[a-z-]+://|:[0-9]+(/.*)?$", "", target.name))
    return replace(job, glidein=replace(job.glidein, site=site))


def describe(job: Job, base: Path, target: Target, parameters: Parameters,
             carry: bool = False) -> tuple[str, dict[str, Any]]:
    """The submit file that ``submit_job`` would use, and the payload's document, without a network and without making
    anything: $(payload), $(image) and $(tokens) stand for the folders that the schedd gives. Raises as packed."""
    from vmjob.api import default_scratch
    from vmjob.batch.description import SPOOL, jobs_description
    from vmjob.image.store.images import Store
    from vmjob.job.payload import payload_document
    from vmjob.stage.archive.collect import collect

    collect(job.inputs, base, default_scratch())
    job = at_target(job, target)
    manifest, files = Store(config.store_dir()).resolve(job.image)
    payload = Payload(job, manifest, {} if manifest.sources and not carry else files,
                      lists=resolve.lists_of(manifest, Reporter()))
    if target.kind == "local":
        return "", payload_document(payload)
    names = [WRAPPER, PYZ, NAME, *([INPUT] if job.inputs else []), *map(list_name, range(len(payload.lists)))]
    text = jobs_description(target, _submission(payload, parameters, tuple(sorted(names))), SPOOL,
                            "$(image)" if payload.image_files else "",
                            "$(tokens)" if target.element else SPOOL)
    queue = f"queue {parameters.count}\n"
    if parameters.rows:
        shown = [*parameters.rows[:10], *([f"# … {parameters.count} rows"] if parameters.count > 10 else [])]
        queue = "queue parameters from (\n" + "".join(f"  {row}\n" for row in shown) + ")\n"
    return f"{text}\n{queue}", payload_document(payload)


def submit_job(job: Job, base: Path, target: Target, parameters: Parameters, reporter: Reporter,
               carry: bool = False) -> Submitted:
    """Queue the jobs at ``target``, all or nothing. ``carry``: as submit.carried. Raises as
    packed and batch.condor do."""
    from vmjob.batch.condor import Condor

    if job.outputs_to and parameters.count > 1 and "$" not in job.outputs_to.replace("$$", ""):
        raise JobError(f"outputs.to: {job.outputs_to}: {parameters.count} jobs would overwrite each other's files",
                       "put a parameter of the jobs in it: --set N='$(Process)' and .../${N}/")
    batch = Condor(target)
    with packed(at_target(job, target), base, parameters, reporter, carry) as (submission, payload, folder):
        for name in submission.tokens:
            write_secret(folder / name, payload.token)
        cluster = batch.submit(submission, folder, reporter)
    return Submitted(cluster, parameters.count, job.name, target.name)


def memory_of(job: Job, manifest: Manifest) -> int:
    """Bytes of the guest's memory that are asked for. Pure."""
    from vmjob.slot.grant import DEFAULT_MEMORY

    return max(job.resources.memory or DEFAULT_MEMORY, manifest.needs_memory)


def request_of(job: Job, manifest: Manifest, extra_disk: int = 0) -> Request:
    """What one job asks of the batch system: its own wishes, or what its image needs, and what QEMU needs beside.
    ``extra_disk``: bytes that come with the job. The accelerator is the node's, so the larger overhead is asked for,
    unless the job insists on KVM. Pure."""
    from vmjob.core.model import Accel
    from vmjob.slot.grant import needed_memory, overhead_of

    wants = job.resources
    memory = memory_of(job, manifest)
    overhead = overhead_of("kvm" if job.accel is Accel.KVM else "tcg")
    own = _SPARE_DISK * (4 if manifest.file("disk") else 1)
    # the outputs are there as the guest's disk, unpacked, and packed again for the way back
    outputs = 3 * (wants.disk or 2**30) if job.outputs else wants.disk or 0
    if job.glidein:  # it returns logs only; what it asks for is for the jobs
        own, outputs = SYSTEM_DISK, wants.disk or 2**30
    return Request(cpus=max(wants.cpus or 1, manifest.needs_cpus), memory=needed_memory(memory, overhead),
                   disk=outputs + own + extra_disk,
                   walltime=wants.walltime + _SPARE_TIME if wants.walltime else None)


def node_needs(job: Job, manifest: Manifest) -> Needs:
    """What the job asks of nodes that say what they do with VMs. Pure."""
    from vmjob.core.model import Accel

    return Needs(memory_of(job, manifest), job.network.value, network_must=job.glidein is not None,
                 kvm=job.accel is Accel.KVM, emulated=job.accel is Accel.TCG)


def _image_room(manifest: Manifest) -> int:
    """Bytes for the image: a node without a cache keeps it in the job's own scratch, and what other programs bring is
    there twice for a moment. Pure."""
    brought = any(source.startswith(("condor:", "davs:")) for source in manifest.sources)
    return manifest.size + brought * max(file.size for file in manifest.files)


def _submission(payload: Payload, parameters: Parameters, files: tuple[str, ...]) -> Submission:
    manifest = payload.manifest
    archive = payload.input_archive.stat().st_size if payload.input_archive else 0
    return Submission(
        name=payload.job.name, image=manifest.name, digest=manifest.digest, parameters=parameters, files=files,
        request=request_of(payload.job, manifest, 2 * archive + _image_room(manifest)),
        image_files={file.sha256: payload.image_files[file.role] for file in manifest.files
                     if file.role in payload.image_files},
        tokens=token_names(parameters.count) if payload.job.glidein else (), needs=node_needs(payload.job, manifest))


# ---------------------------------------------------------------- results


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
