"""``vmjob submit --to any``: a job goes to the best of the sites that fit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmjob.ads.site_ad import Element, SiteAd
from vmjob.batch import memory as sitememory
from vmjob.batch import reach, targets
from vmjob.core.classads import literal
from vmjob.core.errors import JobError, VmjobError
from vmjob.core.model import Accel, Job, Manifest
from vmjob.core.pool_errors import NameTaken, NoSlotFits, PoolError
from vmjob.core.progress import Reporter
from vmjob.core.site_errors import NoSiteFits
from vmjob.sites import matching
from vmjob.sites.matching import Match, Needs, Reason
from vmjob.submit import submission
from vmjob.submit.request import memory_of, request_of

if TYPE_CHECKING:
    from vmjob.batch.targets import Target
    from vmjob.job.parameters import Parameters

_SHOWN = 10  # sites in one message


@dataclass(frozen=True)
class Placed:
    """``match``: where it went, and why; ``failed``: those that were tried before, and what they said."""

    submitted: submission.Submitted
    match: Match
    failed: tuple[tuple[Match, VmjobError], ...] = ()


def needs_of(job: Job, manifest: Manifest, vo: str = "", carry: bool = False) -> Needs:
    """What ``job`` asks of a site, as its submission would. ``vo``: empty, if nobody said; ``carry``: as
    job.resolve.carried. Pure."""
    request = request_of(job, manifest)
    return Needs(image=manifest.name, digest=manifest.digest, memory=memory_of(job, manifest),
                 cpus=request.cpus, walltime=job.resources.walltime or 0, slot_walltime=request.walltime or 0,
                 network=job.network.value, kvm=job.accel is Accel.KVM, vo=vo,
                 way=matching.SOURCES if manifest.sources and not carry else matching.CARRIED, arch=manifest.arch)


def needs_here(job: Job, vo: str = "", carry: bool = False) -> Needs:
    """The same, with the image looked up in the user's store. Raises ImageMissing, ImageError."""
    from vmjob.core import config
    from vmjob.image.store.images import Store

    manifest = Store(config.store_dir()).resolve(job.image)[0]
    return needs_of(job, manifest, vo, carry)


def candidates(needs: Needs, ads: Iterable[SiteAd]) -> list[Match]:
    """All elements of all sites, best first, those that do not fit last, with what is remembered of them."""
    now = time.time()
    found, memory = [], {}
    known = sitememory.recall()
    for one in matching.matches(needs, ads, now):
        try:
            if one.element.kind in matching.SUBMITTED_TO:
                memory[one.element.url] = known.get(_queued(targets.at(one.element.url), one.element).url, [])
        except JobError as wrong:
            one = replace(one, ok=False, reasons=(*one.reasons, Reason(False, wrong.message)))
        found.append(one)
    return matching.rank(found, memory, now)


def submit_to_any(job: Job, base: Path, ranked: Sequence[Match], parameters: Parameters, reporter: Reporter,
                  carry: bool = False) -> Placed:
    """Queue the jobs at the first of ``ranked`` that fits and takes them, all or nothing at each. Where one may have
    taken them without our hearing so, none is tried after it. Raises NoSiteFits; as submit_job does, with
    the failures of all that were tried."""
    failed: list[tuple[Match, VmjobError]] = []
    first = {match.element.url: match for match in reversed(ranked) if match.ok}
    fit = [match for match in ranked if first.get(match.element.url) is match]
    for match in fit:
        target = _queued(targets.at(match.element.url), match.element)
        try:
            _ask(target, reporter)
            done = submission.submit_job(_of_site(job, match.site), base, target, parameters, reporter, carry)
        except NameTaken:
            raise  # else it would be there twice
        except PoolError as failure:
            if failure.unsure:
                failure.hint = ("the jobs may be in its queue, so no other site was tried; when it is back: vmjob "
                                f"status --to {match.element.url}")
                raise
            if match is not fit[-1]:  # of the last one the failure itself tells
                reporter.note(f"{match.site} did not take it: {failure.message}")
            failed.append((match, failure))
            continue
        return Placed(done, match, tuple(failed))
    raise _all_failed(failed) if failed else nothing_fits(job.name, ranked)


def _ask(target: Target, reporter: Reporter) -> None:
    try:
        reach.check(target, reporter)
    except PoolError as failure:
        sitememory.note(target.url, failure)
        raise


def _queued(target: Target, element: Element) -> Target:
    """A CE's routes take the queue of its batch system from ``queue`` in the job; without one they have their own.
    Raises JobError for a name that would be more than a name in a submit file."""
    if element.queue in ("", "default"):
        return target
    if not re.fullmatch(r"[A-Za-z0-9._@:+-]{1,255}", element.queue):
        raise JobError(f"{element.url}: a queue is not called '{element.queue[:100]}'")
    return replace(target, lines=(*target.lines, ("+queue", literal(element.queue))))


def _of_site(job: Job, site: str) -> Job:
    """A glide-in tells the pool where it is, by the name that the site has itself."""
    if job.glidein is None or job.glidein.site:
        return job
    return replace(job, glidein=replace(job.glidein, site=re.sub(r"[^A-Za-z0-9._-]+", "-", site)))


def nothing_fits(name: str, ranked: Sequence[Match]) -> NoSiteFits:
    """The failure, with the weightiest reason of each site."""
    if not ranked:
        return NoSiteFits(f"no site is known that {name} could go to", "vmjob sites shows those that are; its --help "
                          "tells how to name where they are read from")
    lines = [f"{one.site}: {one.against[0].text}" for one in ranked[:_SHOWN]]
    more = [f"… and {len(ranked) - _SHOWN} more"] if ranked[_SHOWN:] else []
    return NoSiteFits("\n  ".join([f"no site fits {name}", *lines, *more]),
                      "vmjob sites --for JOB.yaml tells all that each site lacks")


def _all_failed(failed: Sequence[tuple[Match, VmjobError]]) -> VmjobError:
    """One that may pass stands for all."""
    first = next((error for _, error in failed if error.transient), failed[0][1])
    if len(failed) == 1:
        [(match, error)] = failed
        return type(first)(f"{match.site}, the only one that fits, did not take it: {error.message}", error.hint)
    lines = [f"{match.site}: {error.message}" for match, error in failed]
    every = all(isinstance(error, NoSlotFits) for _, error in failed)
    return type(first)("\n  ".join([f"none of the {len(failed)} that fit took the job", *lines]),
                       "lower what the job asks for" if every else "try again later; vmjob sites --for JOB.yaml shows "
                       "what is remembered of each")
