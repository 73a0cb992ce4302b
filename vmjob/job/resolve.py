"""The submit-side flow: a job and its image become a payload."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.core import config
from vmjob.core.errors import EndorsementRefused, JobError
from vmjob.core.model import Job, Manifest, Payload
from vmjob.core.progress import Reporter
from vmjob.core.units import format_size
from vmjob.image.trust.subscriptions import own_withdrawal
from vmjob.job.boot import boot_method
from vmjob.job.fetching import fetch_of
from vmjob.job.payload import LISTS

if TYPE_CHECKING:
    from vmjob.image.store.images import Store

_LIST = 4 * 2**20  # bytes of a signed list that travels with each payload


def resolve(job: Job, base: Path, store: Store, folder: Path, reporter: Reporter) -> Payload:
    """The payload of ``job``: its image found, its inputs (relative to ``base``) packed into ``folder``.

    The caller removes ``folder``. Raises ImageMissing, ImageError, InputMissing or JobError; of a glide-in's token
    TokenRefused and ClockWrong.
    """
    from vmjob.image.store.home import present
    from vmjob.stage.archive.pack import pack_inputs

    manifest, files = store.resolve(job.image)
    files = present(manifest, files)  # what is not here is fetched where it is needed
    boot_method(job, manifest)
    token = token_of(job, base)
    archive = folder / "input.tar" if job.inputs else None
    if archive:
        pack_inputs(job.inputs, base, archive, reporter)
    return Payload(job, manifest, files, archive, token, lists_of(manifest, reporter))


def lists_of(manifest: Manifest, reporter: Reporter) -> tuple[Path, ...]:
    """Signed lists that name the image, of those that the user follows: nodes may ask who vouches for it."""
    from vmjob.image.trust import subscriptions

    folder = subscriptions.user_folder()
    if not folder.is_dir():
        return ()
    found = subscriptions.naming(manifest.digest, [folder])
    for one in subscriptions.listed(folder):
        if manifest.digest in one.images and one.expires < time.time():
            reporter.note(f"the list {one.identifier} that names {manifest.name} has expired: sites that want an "
                          "endorsement refuse it (vmjob image subscribe --refresh)")
    small = [path for path in found if path.stat().st_size <= _LIST]
    if len(small) < len(found):
        reporter.note(f"a list of more than {format_size(_LIST)} stays here; sites that accept its endorser follow it "
                      "themselves")
    return tuple(small[:LISTS])


def token_of(job: Job, base: Path) -> str:
    """The token of a glide-in, empty for other jobs; the file is relative to ``base``. What else can be wrong with a
    glide-in, and needs more than its file to be seen, is looked for too. Raises JobError, TokenRefused, ClockWrong."""
    from vmjob.core.tokens import read_token
    from vmjob.guest.glidein import check_attributes

    if not job.glidein:
        return ""
    check_attributes(job.glidein)
    _check_expression(job.glidein.start)
    return read_token(base / Path(job.glidein.token).expanduser())


def _check_expression(text: str) -> None:
    """Raises JobError where HTCondor's bindings are here and cannot read it."""
    try:
        import classad2
    except ImportError:
        return
    try:
        classad2.ExprTree(text or "True")
    except classad2.ClassAdException as wrong:
        raise JobError(f"glidein.start: {text!r} is no ClassAd expression",
                       "such as TARGET.RequestMemory < 2000") from wrong


def carried(payload: Payload, reporter: Reporter, carry: bool = False) -> Payload:
    """What of its image travels with the job: all files, verified here, as a broken image should not travel. Nothing
    where nodes fetch it from its sources, unless ``carry``. Raises ImageMissing, ImageCorrupt, ImageOutOfReach,
    EndorsementRefused for one that a list which the user follows has withdrawn."""
    gone = own_withdrawal(payload.manifest)
    if gone:
        raise EndorsementRefused(f"the image {payload.manifest.name} was withdrawn: {gone}",
                                 "use the version that the list has now (vmjob image list)")
    if payload.manifest.sources and not carry:
        reporter.note(f"the image {payload.manifest.name} does not travel: nodes fetch it from its sources "
                      "(--carry-image sends it along)")
        return replace(payload, image_files={})
    image = home_of(payload).open(payload.manifest, payload.image_files, reporter, fetch_of(payload.manifest, reporter),
                                  layered=False)
    return replace(payload, image_files=image.paths)


def home_of(payload: Payload) -> Store:
    """Where this machine keeps the image's verified files."""
    from vmjob.image.store import home

    return home.home_of(payload.manifest, payload.image_files, config.own_store())
