"""Which boot method a job has in an image, and as whom its program runs there."""

from __future__ import annotations

from vmjob.core.errors import JobError
from vmjob.core.model import Boot, Job, Manifest


def boot_method(job: Job, manifest: Manifest) -> Boot:
    """The job's own choice, else the image's first. Raises JobError when the image has no such method."""
    if job.boot is None:
        return manifest.boot[0]
    if job.boot not in manifest.boot:
        raise JobError(f"boot: the image {manifest.name} cannot be booted by '{job.boot.value}'",
                       f"it has: {', '.join(b.value for b in manifest.boot)}")
    return job.boot


def guest_user(job: Job, manifest: Manifest) -> str:
    return job.user or manifest.user
