"""The slot-side flow, the same for ``vmjob run`` on a laptop and for the wrapper in a batch slot.

It reads top to bottom; everything that must be undone is on one ExitStack, so that each way out (success,
failure, signal) leaves no process and no file but the results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob import accounting, compose, config, interrupt, runs
from vmjob.errors import Interrupted, OutputMissing, OutputTooLarge, PolicyRefused, VmjobError
from vmjob.glideins import FOLDER, times
from vmjob.guestwatch import lost
from vmjob.interrupt import PATIENCE, Signals, interrupted
from vmjob.job import check_address
from vmjob.model import Fetch, Image, Payload, Slot
from vmjob.outcome import Run
from vmjob.progress import Reporter
from vmjob.result import Result
from vmjob.resultfile import begin, keep_result
from vmjob.submit import fetch_of, stage_time
from vmjob.units import format_size

if TYPE_CHECKING:
    from vmjob.image.store import Store

log = logging.getLogger("vmjob.run")

COLLECT = 10.0  # seconds that outputs which are there have to come into the results folder, from a signal on


def run(payload: Payload, slot: Slot, store: Store, *, results: Optional[Path] = None,
        reporter: Optional[Reporter] = None, fetch: Optional[Fetch] = None) -> Result:
    """Walk the whole road once. Never raises a VmjobError: the Result tells it.

    ``results`` is the folder that gets result.json, the outputs and console.log; None keeps nothing.
    ``store`` is where verified images live on this machine; ``fetch`` brings what the payload lacks of its image.
    Signals are taken over meanwhile, so call it from the main thread.
    """
    from vmjob.slot.scratch import claim

    this = Run(payload, slot, reporter or Reporter(), results)
    with Signals(PATIENCE) as signals, ExitStack() as outer:
        try:
            if results is not None:
                outer.enter_context(claim(results))
                begin(results, payload.job.name, _may_bring(payload.job.outputs))
            outer.enter_context(accounting.recorded(this))
            _undone(this, store, signals, fetch)
        except Exception as error:
            this.failure = this.failure or this.named(error)
        # the outcome stands: what comes now finds a run that is over
        signals.decide()
        result = this.result()
        if results is not None and result.failure_kind != "FolderBusy":
            result = keep_result(result, results)
    return result


def _undone(this: Run, store: Store, signals: Signals, fetch: Optional[Fetch]) -> None:
    """Walk the road, and undo what was done on it: no trouble with that is the run's outcome."""
    with ExitStack() as stack:
        try:
            _walk(this, store, signals, stack, fetch)
        except Exception as error:
            this.failure = this.named(error)
        finally:
            signals.decide()
            with this.stages.stage("teardown"):
                try:
                    stack.close()
                except Exception as trouble:
                    log.warning("after the run: %s", trouble, exc_info=not isinstance(trouble, (OSError, VmjobError)))
                    this.note(f"teardown: {trouble}")
            this.folder = None  # that it is gone is right from here on


def _walk(this: Run, store: Store, signals: Signals, stack: ExitStack, fetch: Optional[Fetch]) -> None:
    from vmjob.slot.grant import grant
    from vmjob.slot.scratch import scratch

    job, manifest = this.payload.job, this.payload.manifest
    with this.stages.stage("stage"):
        this.boot = compose.boot_method(job, manifest)
        _admit(this)
        this.send_to = check_address(job.outputs_to, "outputs.to", dict(job.environment))
        stage_time(None)  # a setting that is wrong is told now, and not when the program has ended
        granted = grant(this.slot, job, manifest)  # what can never fit is told before anything is read
        if job.glidein:
            from vmjob.tokens import check

            check(this.payload.token, "the glide-in's token")
            times(job.glidein, granted.walltime)
        folder = this.folder = stack.enter_context(scratch(this.slot.scratch))
        if this.payload.input_archive:
            this.bytes_in = this.payload.input_archive.stat().st_size
    if granted.walltime is not None:
        signals.until(this.clock + granted.walltime + 1)  # whoever fetches knows it too, and says more
    signals.check()
    with this.stages.stage("verify"):
        stack.enter_context(store.hold(manifest))  # nobody makes room with what we boot from
        fetch = fetch_of(manifest, this.reporter, fetch, this.left(granted.walltime), this.fetched)
        image = store.open(manifest, this.payload.image_files, this.reporter, fetch, folder, keep=stack)
    if this.bytes_image:
        this.reporter.note(f"fetched {format_size(this.bytes_image)} of the image {manifest.name}")
    with runs.registered(manifest.digest, store.root):  # the node's admin hears of it, and of what is the node's fault
        try:
            _in_guest(this, image, folder, signals, stack)
        except Exception as error:
            raise this.named(error) from error
    if this.send_to and this.channel and this.channel.exit_status == 0:  # of a failed program they stay with the job
        signals.allow(0, _last_moment(this))  # as in all stages without a guest: a signal ends it at once
        signals.check()
        with this.stages.stage("send"):
            _send(this, signals)


def _last_moment(this: Run) -> Optional[float]:
    """When the walltime is over (monotonic), less what the way out needs."""
    walltime = this.granted.walltime if this.granted else None
    return None if walltime is None else this.clock + walltime - min(5.0, walltime * 0.1)


def _may_bring(patterns: Sequence[str]) -> Callable[[str], bool]:
    """May a job with these output patterns bring a file of this name?"""
    from vmjob.ownnames import reserved
    from vmjob.stage.archive import Wanted

    wanted = Wanted(patterns)
    return lambda name: not reserved(name.split("/")[0]) and wanted.take(name.split("/"))


def _in_guest(this: Run, image: Image, folder: Path, signals: Signals, stack: ExitStack) -> None:
    from vmjob.slot.grant import grant, overhead_of
    from vmjob.supervise import Guest
    from vmjob.vm import probe

    job, manifest = this.payload.job, this.payload.manifest
    with this.stages.stage("probe"):
        this.qemu = probe.find_qemu()
        this.accel = probe.choose_accel(job.accel, this.qemu)
        this.granted = grant(this.slot, job, manifest, overhead_of(this.accel.name))
        signals.until(_last_moment(this))
        this.reporter.note(f"accelerator {this.accel.name}: {this.accel.reason}")
    guest = stack.enter_context(Guest(this, image, folder, signals))
    try:
        with this.stages.stage("boot"):
            guest.boot()
        with this.stages.stage("payload"):
            guest.work()
        with this.stages.stage("collect"):
            signals.until(None)  # for the guest its watch hears it
            guest.finish()
            if guest.left is None:
                signals.allow(COLLECT, _last_moment(this))
            else:  # it was told that its time ends, and that was for all of it
                signals.allow(guest.left, time.monotonic() + guest.left)
            _collect(this, folder / compose.RunFiles.output_disk)
            if job.glidein:
                _learn(this, stopped=guest.stopped is not None)
    except Exception as later:
        first = guest.stopped
        if first is None and signals.stops:  # whoever told us to end has ended QEMU as well
            first = interrupted(signals.stops[0])
        if first is None or later is first or isinstance(later, Interrupted):
            raise
        this.note(f"besides: {this.named(later)}")
        raise first from later
    if guest.stopped:
        raise guest.stopped
    if this.network_lost and this.channel and this.channel.exit_status:
        raise lost(this.network_lost)


def _admit(this: Run) -> None:
    """Ask the site's policy before a byte is moved. Raises PolicyRefused, PolicyBroken, EndorsementRefused."""
    from vmjob.admission import admit

    admitted = admit(this.payload, this.slot)
    this.slot, this.decision, this.vos = admitted.slot, admitted.decision, admitted.vos
    if this.decision and not this.decision.allowed:
        raise PolicyRefused(this.decision.reason, admitted.hint)


def _learn(this: Run, stopped: bool) -> None:
    """What a glide-in has done, from the logs that it returned. Raises the failure that it names."""
    from vmjob.guest.glidein import failure, worked

    folder = this.results and this.results / FOLDER
    this.glidein = worked(this.worker, folder) if folder else None
    status = this.channel.exit_status if this.channel else None
    if status and not stopped:
        raise failure(status, folder)


def _collect(this: Run, disk: Path) -> None:
    """The outputs of the guest into the results folder. A missing result is a failure."""
    from vmjob.stage.archive import Wanted, unpack_outputs

    told = this.channel
    if told is None or this.results is None or this.granted is None:
        return
    if told.outputs == "toolarge":
        raise OutputTooLarge(f"the outputs do not fit into {format_size(this.granted.disk)}",
                             "ask for more in resources.disk (--disk), or return less")
    if told.outputs == "failed":
        raise OutputMissing(f"the guest could not pack its outputs: {told.outputs_text}",
                            "see console.log for what the guest said")
    wanted = Wanted(this.job.outputs)
    if told.outputs == "ok":
        this.outputs = unpack_outputs(disk, this.results, this.granted.disk, this.reporter, wanted,
                                      interrupt.check)
        this.bytes_out = sum(path.stat().st_size for name in this.outputs
                             if (path := this.results / name).is_file() and not path.is_symlink())
    # looked for here too: what the guest says of itself is no proof
    missing = told.missing or wanted.missing
    if missing:
        raise OutputMissing(f"the program left no file that matches '{missing[0]}'"
                            + (f" (nor {len(missing) - 1} other patterns)" if missing[1:] else ""),
                            "compare outputs in the job with what the program writes into its work folder")


def _send(this: Run, signals: Signals) -> None:
    """The outputs from the results folder to where the job wants them. Those of a failure here stay in the folder, and
    come back with the job. Raises StageOutFailed."""
    from vmjob.stage.out import send

    if this.results is None:
        return
    end = _last_moment(this)
    # its own deadline, which says what was sent, comes first
    left = None if end is None else end - time.monotonic() - 1
    this.staged = send(this.results, this.outputs, this.send_to, timeout=stage_time(left),
                       rate=config.stage_rate(), reporter=this.reporter)
    signals.decide()  # what has arrived is taken off the results in one go
    gone = {one.name for one in this.staged}
    for name in gone:
        (this.results / name).unlink()
    this.outputs = tuple(name for name in this.outputs if name not in gone)
