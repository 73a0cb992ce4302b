"""The submit-side flow for batch systems: job + target → jobs in a queue, and their results back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmjob.batch.description import Submission, token_names
from vmjob.core import config
from vmjob.core.errors import JobError
from vmjob.core.files import place, write_secret
from vmjob.core.model import Job, Payload
from vmjob.core.ownnames import INPUT, NAME, PYZ, WRAPPER
from vmjob.core.progress import Reporter
from vmjob.job import bundle, resolve
from vmjob.job.parameters import Parameters
from vmjob.job.payload import list_name
from vmjob.submit.request import image_room, node_needs, request_of

if TYPE_CHECKING:
    from vmjob.batch.targets import Target


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
    ``carry``: as job.resolve.carried. Raises ImageMissing, ImageError, InputMissing, JobError."""
    from vmjob.core.config import default_scratch
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
    from vmjob.batch.description import SPOOL, jobs_description
    from vmjob.core.config import default_scratch
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
    """Queue the jobs at ``target``, all or nothing. ``carry``: as job.resolve.carried. Raises as
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


def _submission(payload: Payload, parameters: Parameters, files: tuple[str, ...]) -> Submission:
    manifest = payload.manifest
    archive = payload.input_archive.stat().st_size if payload.input_archive else 0
    return Submission(
        name=payload.job.name, image=manifest.name, digest=manifest.digest, parameters=parameters, files=files,
        request=request_of(payload.job, manifest, 2 * archive + image_room(manifest)),
        image_files={file.sha256: payload.image_files[file.role] for file in manifest.files
                     if file.role in payload.image_files},
        tokens=token_names(parameters.count) if payload.job.glidein else (), needs=node_needs(payload.job, manifest))


# ---------------------------------------------------------------- results
