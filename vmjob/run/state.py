"""What is known of a run so far: filled in along the road, asked for a Result at any moment."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob.core.errors import Interrupted, VmjobError, WalltimeOver
from vmjob.core.glideins import Worked
from vmjob.core.model import AccelChoice, Boot, Granted, Job, Payload, QemuInfo, Slot
from vmjob.core.progress import Reporter, Stages
from vmjob.core.result import Decision, Result, Staged
from vmjob.run.outcome import failure_of, named, signal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmjob.guest.channel import Channel
    from vmjob.policy.verdict import Fact
    from vmjob.vm.net import Traffic


NOTES = 50


class CpuTime:
    """CPU seconds of a run's QEMUs: of those that have ended, and of the one that runs. The thread of the usage record
    reads it while the main one moves the second into the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before = 0.0
        self._running: Optional[Callable[[], float]] = None

    def began(self, now: Callable[[], float]) -> None:
        """``now``: the seconds of a QEMU that was just started."""
        with self._lock:
            self._running = now

    def ended(self, seconds: float) -> None:
        """That QEMU has ended, and had so many in all."""
        with self._lock:
            self._before, self._running = self._before + seconds, None

    def now(self) -> float:
        with self._lock:
            return self._before + (self._running() if self._running else 0.0)


@dataclass
class Run:
    """Filled in along the road; ``result`` can be asked at any moment."""

    payload: Payload
    slot: Slot
    reporter: Reporter
    results: Optional[Path]
    stages: Stages = field(init=False)
    failure: Optional[VmjobError] = None
    notes: list[str] = field(default_factory=list)  # what went wrong besides, after the failure or without one
    network_lost: str = ""  # why, where the guest's network ended while it ran
    folder: Optional[Path] = None  # in the slot's scratch
    granted: Optional[Granted] = None
    qemu: Optional[QemuInfo] = None
    accel: Optional[AccelChoice] = None
    network: str = ""
    boot: Optional[Boot] = None
    attempts: int = 0
    channel: Optional[Channel] = None
    outputs: tuple[str, ...] = ()
    bytes_in: int = 0
    bytes_image: int = 0
    bytes_out: int = 0
    cpu: CpuTime = field(default_factory=CpuTime)
    peak_memory: int = 0
    console_tail: tuple[str, ...] = ()
    stop: str = ""
    send_to: str = ""  # where outputs go, empty for back with the job
    decision: Optional[Decision] = None
    vos: tuple[Fact, ...] = ()  # that the site's policy finds whoever asks in
    staged: tuple[Staged, ...] = ()
    worker: str = ""  # the guest's name in the pool of a glide-in
    glidein: Optional[Worked] = None
    accounted: bool = False  # somebody wants to know these, while it goes on too:
    paused: bool = False  # the guest stands still because we were told so
    traffic: list[Traffic] = field(default_factory=list)  # one for each boot with a network
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.stages = Stages(self.reporter)

    def fetched(self, amount: int) -> None:
        """Bytes of the image have come."""
        self.bytes_image += amount

    def left(self, seconds: Optional[float]) -> Optional[float]:
        """What is left of ``seconds`` from the run's start on; None stays None."""
        return None if seconds is None else self.clock + seconds - time.monotonic()

    def note(self, text: str) -> None:
        """What a person should see, and what the result keeps."""
        self.notes.append(text)
        self.reporter.note(text)

    @property
    def job(self) -> Job:
        return self.payload.job

    def result(self) -> Result:
        """The Result as of now. If the program ran, its exit status is the job's, also when an output is
        missing besides; a run that was cut short is a failure whatever the program said in its last moment."""
        program = self.channel.exit_status if self.channel else None
        failure = failure_of(self.failure) if self.failure else None
        # what a glide-in's own script ends with is told by its failure
        if program and not isinstance(self.failure, (Interrupted, WalltimeOver)) and not self.job.glidein:
            outcome, status = "program-failed", program
        elif failure:
            outcome, status = "failed", failure.status
        elif program != 0:
            raise AssertionError("neither a result nor a failure: a missing result is a failure")
        else:
            outcome, status = "ok", 0
        manifest, granted = self.payload.manifest, self.granted
        return Result(
            job=self.payload.job.name, outcome=outcome, status=status, exit_status=program, signal=signal_of(program),
            failure=failure, stages=tuple(self.stages.times), accelerator=self.accel,
            qemu_version=self.qemu.version_text if self.qemu else "", image=manifest.name,
            image_digest=manifest.digest, boot=self.boot.value if self.boot else "", boot_attempts=self.attempts,
            network=self.network, cpus=granted.cpus if granted else 0, memory=granted.memory if granted else 0,
            slot=self.slot.kind, bytes_in=self.bytes_in, bytes_image=self.bytes_image, bytes_out=self.bytes_out,
            cpu_seconds=round(self.cpu.now(), 3), peak_memory=self.peak_memory, outputs=self.outputs,
            console_tail=self.console_tail if outcome == "failed" else (), stop=self.stop,
            started=round(self.started, 3), ended=round(time.time(), 3), host=os.uname().nodename,
            glidein=self.glidein, policy=self.decision, staged=self.staged, notes=tuple(self.notes[:NOTES]),
            network_lost=self.network_lost)

    def named(self, error: BaseException) -> VmjobError:
        """The failure that ``error`` is: what the node did to the run goes before what it looks like."""
        found = named(error, self.folder)
        found.stage = found.stage or self.stages.current
        return found
