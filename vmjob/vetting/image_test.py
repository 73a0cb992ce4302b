"""``vmjob image test``: does an image do what a job counts on? Runs of it, with a shell script of ours as the job."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Optional

from vmjob.core import config
from vmjob.core.errors import GuestError
from vmjob.core.model import Boot, Input, Job, Manifest, Network, Resources
from vmjob.core.progress import Reporter
from vmjob.core.result import Failure, Result
from vmjob.core.units import MIB
from vmjob.core.version import __version__
from vmjob.vetting import selftest
from vmjob.vetting.selftest import FAILED, Check, Tried
from vmjob.vetting.watch import STAGES, Watch, walltime_of


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
        return {"vmjob": __version__, "schema": 1, "image": self.image, "digest": self.digest,
                "time": self.time, "passed": self.passed, "qemu_version": self.qemu_version,
                "accelerator": self.accelerator,
                "boots": [{"boot": one.boot.value, "passed": one.passed, "checks": [asdict(c) for c in one.checks]}
                          for one in self.boots]}


def test(ref: str, manifest: Manifest, methods: Sequence[Boot], reporter: Reporter) -> Outcome:
    """Boot the image twice by each method, and look whether all is there that a job counts on: once with just what it
    says it needs, and once as root without a network. Raises Interrupted, and what run_job raises before a run."""
    boots, results = [], list[Result]()
    with reporter.bar(f"test {manifest.name}", len(methods) * 2 * STAGES, "steps") as bar:
        watch = Watch(reporter, bar)
        for method in methods:
            reporter.note(f"{manifest.name}: booting as {method.value}")
            with tempfile.TemporaryDirectory(prefix="vmjob-test-", dir=config.default_scratch()) as folder:
                booted, result = _test(ref, manifest, method, watch, Path(folder))
            boots.append(booted)
            results.append(result)
    best = next((result for result in results if result.accelerator), results[0])
    return Outcome(manifest.name, manifest.digest, int(time.time()), best.qemu_version,
                   best.accelerator.name if best.accelerator else "", tuple(boots))


def _test(ref: str, manifest: Manifest, method: Boot, watch: Watch, folder: Path) -> tuple[Booted, Result]:
    data = os.urandom(MIB + 7)
    inputs = _inputs(folder / "in", data)
    full = Job(name="test", image=ref, boot=method, script=selftest.script(), inputs=inputs,
               outputs=(selftest.OUTPUTS,), environment=_environment("full", manifest),
               resources=Resources(cpus=manifest.needs_cpus, memory=manifest.needs_memory, disk=64 * MIB,
                                   walltime=walltime_of(method)))
    bare = replace(full, inputs=(), outputs=(), environment=_environment("bare", manifest), user="root",
                   network=Network.NONE, resources=Resources(walltime=walltime_of(method)))
    first = _tried(full, watch, folder / "in", folder / "full")
    booted = first.result.boot_attempts and not selftest.never_booted(first.result)
    second = _tried(bare, watch, folder, folder / "bare") if booted else None
    checks = selftest.check(first, second, manifest.user, data)
    failure = first.result.failure or (second.result.failure if second else None)
    return Booted(method, checks, failure), first.result


def _tried(job: Job, watch: Watch, base: Path, results: Path) -> Tried:
    results.mkdir()
    result = watch.run(job, base, results)
    facts, seconds = selftest.read_facts(watch.streams["stdout"])
    return Tried(result, watch.streams["stdout"], watch.streams["stderr"], results, facts, seconds)


def _environment(kind: str, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    return (("VMJOB_TEST", kind), ("VMJOB_TEST_USER", manifest.user))


def _inputs(folder: Path, data: bytes) -> tuple[Input, ...]:
    """What selftest.sh looks for, made in ``folder``."""
    odd = folder / "in put"
    (odd / "empty").mkdir(parents=True)
    (odd / "é ü.txt").write_text(selftest.TEXT, encoding="utf-8")
    (odd / "tool").write_text("#!/bin/sh\necho runs\n")
    (odd / "tool").chmod(0o755)
    (folder / "data").write_bytes(data)
    return Input(odd.name), Input("data")
