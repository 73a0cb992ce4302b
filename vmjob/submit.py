"""The submit-side flow: a job and its image become a payload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmjob import compose
from vmjob.model import Job, Payload
from vmjob.progress import Reporter

if TYPE_CHECKING:
    from vmjob.image.store import Store


def resolve(job: Job, base: Path, store: Store, folder: Path, reporter: Reporter) -> Payload:
    """The payload of ``job``: its image found, its inputs (relative to ``base``) packed into ``folder``.

    The caller removes ``folder``. Raises ImageMissing, ImageError, InputMissing or JobError.
    """
    from vmjob.stage.archive import pack_inputs

    manifest, files = store.resolve(job.image)
    compose.boot_method(job, manifest)
    archive = folder / "input.tar" if job.inputs else None
    if archive:
        pack_inputs(job.inputs, base, archive, reporter)
    return Payload(job, manifest, files, archive)
