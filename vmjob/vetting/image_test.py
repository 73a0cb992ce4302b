"""Runs of an image that try it: which packages are in it (``vmjob image scan``), does it work (``vmjob image test``).

Both walk the one road of api.run_job, with a shell script of ours as the job.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

import vmjob
from vmjob import api
from vmjob.core import config
from vmjob.core.errors import GuestError, Interrupted, VmjobError
from vmjob.core.model import Boot, Input, Job, Manifest, Network, Resources
from vmjob.core.progress import Bar, Reporter
from vmjob.core.result import Failure, Result
from vmjob.core.units import MIB
from vmjob.guest.channel import clean
from vmjob.image import manifest as manifests
from vmjob.image.store.images import Store
from vmjob.image.trust import verify
from vmjob.run import compose
from vmjob.run.guest import BOOT_ATTEMPTS
from vmjob.run.outcome import failure_of
from vmjob.vetting import feed, packages, selftest
from vmjob.vetting.packages import Listing
from vmjob.vetting.selftest import FAILED, Check, Tried

_STAGES = 7  # of a run, for the bar
# Seconds that a script of ours may take in a guest that is emulated on a busy machine. A broken guest waits for ever.
_PATIENCE = 600


class _Watch(Reporter):
    """Shows the stages of several runs as steps of one bar, and keeps the beginning of what the last program said."""

    def __init__(self, outer: Reporter, bar: Bar) -> None:
        self._outer, self._bar, self._begun, self._stages = outer, bar, 0, 0
        self.streams: dict[str, bytes] = {}

    def run(self, job: Job, base: Path, results: Path) -> Result:
        """Raises Interrupted (somebody wants us to end, not this run alone), and as api.run_job."""
        self.streams = {"stdout": b"", "stderr": b""}
        self._begun, self._stages = self._begun + 1, 0
        result = api.run_job(job, base=base, results=results, reporter=self)
        self._bar.set(self._begun * _STAGES)
        if result.failure and result.failure_kind == "Interrupted":
            raise Interrupted(result.failure.message, "the images were not looked at to the end")
        return result

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        self._stages = min(self._stages + 1, _STAGES)
        self.tick()

    def tick(self, percent: Optional[int] = None) -> None:
        self._bar.set((self._begun - 1) * _STAGES + self._stages)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        return self._outer.bar(name, total, unit)

    def output(self, stream: str, data: bytes) -> None:
        self.streams[stream] += data[:selftest.STDOUT_LIMIT - len(self.streams[stream])]


def _walltime(boot: Boot) -> int:
    return BOOT_ATTEMPTS * compose.timeouts(boot)[0] + _PATIENCE


# ---------------------------------------------------------------- scan


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
    with reporter.bar("list packages", runs * _STAGES, "steps") as bar:
        watch = _Watch(reporter, bar)
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


def _ask(ref: str, manifest: Manifest, watch: _Watch) -> tuple[Optional[Listing], Optional[Failure]]:
    job = Job(name="scan", image=ref, script=packages.script(), outputs=(packages.REPORT,), network=Network.NONE,
              resources=Resources(disk=packages.LIMIT, walltime=_walltime(manifest.boot[0])))
    try:
        with tempfile.TemporaryDirectory(prefix="vmjob-scan-", dir=api.default_scratch()) as folder:
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


# ---------------------------------------------------------------- test


@dataclass(frozen=True)
class Booted:
    """One boot method and its checks; ``failure``: of the run itself, if it had one."""

    boot: Boot
    checks: tuple[Check, ...]
    failure: Optional[Failure] = None

    @property
    def passed(self) -> bool:
        return all(check.outcome != FAILED for check in self.checks)


@dataclass(frozen=True)
class Outcome:
    """Of an image's functionality test (schemas/test.schema.json); ``time`` is when it ended, epoch."""

    image: str
    digest: str
    time: int
    qemu_version: str
    accelerator: str
    boots: tuple[Booted, ...]

    @property
    def passed(self) -> bool:
        return all(boot.passed for boot in self.boots)

    @property
    def status(self) -> int:
        """0; else of the first run that failed as a run; else GuestError's, as it came up and did not do its part."""
        if self.passed:
            return 0
        return next((one.failure.status for one in self.boots if one.failure), GuestError.status)

    def to_json(self) -> dict[str, Any]:
        return {"vmjob": vmjob.__version__, "schema": 1, "image": self.image, "digest": self.digest,
                "time": self.time, "passed": self.passed, "qemu_version": self.qemu_version,
                "accelerator": self.accelerator,
                "boots": [{"boot": one.boot.value, "passed": one.passed, "checks": [asdict(c) for c in one.checks]}
                          for one in self.boots]}


def test(ref: str, manifest: Manifest, methods: Sequence[Boot], reporter: Reporter) -> Outcome:
    """Boot the image twice by each method, and look whether all is there that a job counts on: once with just what it
    says it needs, and once as root without a network. Raises Interrupted, and what api.run_job raises before a run."""
    boots, results = [], list[Result]()
    with reporter.bar(f"test {manifest.name}", len(methods) * 2 * _STAGES, "steps") as bar:
        watch = _Watch(reporter, bar)
        for method in methods:
            reporter.note(f"{manifest.name}: booting as {method.value}")
            with tempfile.TemporaryDirectory(prefix="vmjob-test-", dir=api.default_scratch()) as folder:
                booted, result = _test(ref, manifest, method, watch, Path(folder))
            boots.append(booted)
            results.append(result)
    best = next((result for result in results if result.accelerator), results[0])
    return Outcome(manifest.name, manifest.digest, int(time.time()), best.qemu_version,
                   best.accelerator.name if best.accelerator else "", tuple(boots))


def _test(ref: str, manifest: Manifest, method: Boot, watch: _Watch, folder: Path) -> tuple[Booted, Result]:
    data = os.urandom(MIB + 7)
    inputs = _inputs(folder / "in", data)
    full = Job(name="test", image=ref, boot=method, script=selftest.script(), inputs=inputs,
               outputs=(selftest.OUTPUTS,), environment=_environment("full", manifest),
               resources=Resources(cpus=manifest.needs_cpus, memory=manifest.needs_memory, disk=64 * MIB,
                                   walltime=_walltime(method)))
    bare = replace(full, inputs=(), outputs=(), environment=_environment("bare", manifest), user="root",
                   network=Network.NONE, resources=Resources(walltime=_walltime(method)))
    first = _tried(full, watch, folder / "in", folder / "full")
    booted = first.result.boot_attempts and not selftest.never_booted(first.result)
    second = _tried(bare, watch, folder, folder / "bare") if booted else None
    checks = selftest.check(first, second, manifest.user, data)
    failure = first.result.failure or (second.result.failure if second else None)
    return Booted(method, checks, failure), first.result


def _tried(job: Job, watch: _Watch, base: Path, results: Path) -> Tried:
    results.mkdir()
    result = watch.run(job, base, results)
    facts, seconds = selftest.read_facts(watch.streams["stdout"])
    return Tried(result, watch.streams["stdout"], watch.streams["stderr"], results, facts, seconds)


def _environment(kind: str, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    return (("VMJOB_TEST", kind), ("VMJOB_TEST_USER", manifest.user))


def _inputs(folder: Path, data: bytes) -> tuple[Input, ...]:
    """What guest/selftest.sh looks for, made in ``folder``."""
    odd = folder / "in put"
    (odd / "empty").mkdir(parents=True)
    (odd / "é ü.txt").write_text(selftest.TEXT, encoding="utf-8")
    (odd / "tool").write_text("#!/bin/sh\necho runs\n")
    (odd / "tool").chmod(0o755)
    (folder / "data").write_bytes(data)
    return Input(odd.name), Input("data")
