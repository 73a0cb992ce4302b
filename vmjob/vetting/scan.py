"""``vmjob image scan``: what packages an image has, and which of them the feeds name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.core import config
from vmjob.core.errors import GuestError, Interrupted, VmjobError
from vmjob.core.model import Job, Manifest, Network, Resources
from vmjob.core.progress import Reporter
from vmjob.core.result import Failure
from vmjob.guest.channel import clean
from vmjob.image import manifest as manifests
from vmjob.image.store.images import Store
from vmjob.image.trust import verify
from vmjob.run.outcome import failure_of
from vmjob.vetting import feed, packages, selftest
from vmjob.vetting.packages import Listing
from vmjob.vetting.watch import STAGES, Watch, walltime_of


@dataclass(frozen=True)
class Scanned:
    """An image and what the feeds say of it. ``listing`` None: it could not be had, ``failure`` says why."""

    manifest: Manifest
    listing: Optional[Listing] = None
    failure: Optional[Failure] = None
    findings: tuple[feed.Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """``bad``, ``clean``, ``unknown`` (no package system in it to tell) or ``failed`` (it could not be asked)."""
        if self.findings:
            return "bad"
        if self.listing is None:
            return "failed"
        return "clean" if self.listing.packages else "unknown"


def endorsed(path: Path, store: Store, folder: Path) -> tuple[list[tuple[str, Manifest]], int]:
    """The images of a signed list as ``scan`` takes them, and how many of it cannot be had as they have no manifest.
    Those that are not in ``store`` are fetched from their sources when they are run; ``folder`` (the caller's, for as
    long) gets their manifests. Raises EndorsementRefused."""
    signed = verify.verify_list(path, config.ca_dir(), time.time())
    found, foreign, here = [], 0, {one.digest for one in store.list()}
    for place in range(len(signed.listing.entries)):
        manifest = signed.listing.image(place).manifest
        if manifest is None:
            foreign += 1
        elif manifest.digest in here:
            found.append((manifest.digest, manifest))
        elif manifest.digest not in signed.listing.withdrawn:
            own = folder / manifest.digest[7:]
            own.mkdir(exist_ok=True)
            (own / manifests.FILE_NAME).write_text(manifests.dump(manifest), encoding="utf-8")
            found.append((str(own), manifest))
    return found, foreign


def scan(images: Iterable[tuple[str, Manifest]], feeds: Sequence[feed.Feed], reporter: Reporter) -> list[Scanned]:
    """Hold images (a reference that run takes, and the manifest) against feeds. An image is run once, to list its
    packages; from then on its list is in the store. What one image fails of is told in its Scanned. Raises
    Interrupted."""
    known = {manifest.digest: (ref, manifest) for ref, manifest in images}
    store, found = config.store_dir(), []
    lists = {digest: packages.remembered(digest, store) for digest in known}
    runs = sum(listing is None for listing in lists.values())
    with reporter.bar("list packages", runs * STAGES, "steps") as bar:
        watch = Watch(reporter, bar)
        for digest, (ref, manifest) in known.items():
            listing, failure = lists[digest], None
            if listing is None:
                reporter.note(f"{manifest.name}: asking it for its packages")
                listing, failure = _ask(ref, manifest, watch)
            if listing and lists[digest] is None:
                packages.remember(listing, store)
            # what the manifest says of itself counts too: it is all there is of an image without a package system
            found.append(Scanned(manifest, listing, failure, feed.findings(
                feeds, listing or Listing(digest, "", (), (), 0.0), packages.made_from(manifest))))
    return found


def _ask(ref: str, manifest: Manifest, watch: Watch) -> tuple[Optional[Listing], Optional[Failure]]:
    job = Job(name="scan", image=ref, script=packages.script(), outputs=(packages.REPORT,), network=Network.NONE,
              resources=Resources(disk=packages.LIMIT, walltime=walltime_of(manifest.boot[0])))
    try:
        with tempfile.TemporaryDirectory(prefix="vmjob-scan-", dir=config.default_scratch()) as folder:
            result = watch.run(job, Path(), Path(folder))
            if result.exit_status:
                said = clean(watch.streams["stderr"].strip().split(b"\n")[-1])[:200]
                raise GuestError(f"{manifest.name} cannot list its packages: {said or result.exit_status}",
                                 f"see vmjob image test {ref}")
            if result.failure:
                return None, result.failure
            return packages.parse(selftest.read_plain(Path(folder) / packages.REPORT) or b"", manifest.digest), None
    except Interrupted:
        raise
    except VmjobError as error:
        return None, failure_of(error)
