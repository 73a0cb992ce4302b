"""What HTCondor learns of a run: attributes of the job's ad, set while it goes on, and what to do with the job then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from vmjob.core.classads import Value
from vmjob.core.errors import Interrupted, StageOutFailed, TokenRefused, VmjobError, WalltimeOver
from vmjob.core.progress import Bar, Reporter
from vmjob.core.result import Failure, Result
from vmjob.slot import readers
from vmjob.slot.chirp import Chirp, literal

log = logging.getLogger("vmjob.slot")

FLUSH = 120.0  # seconds that the end may take where the network is cut
HURRY = 5.0  # the same, when we are being stopped
_AVOID = 20  # nodes remembered; a job that failed on more has another problem
_PAUSE = 2.0
_GUEST = 240  # where the band of the guest's own failures begins, and after it our bugs


# ---------------------------------------------------------------- what is told: pure


def decision(result: Result, machine: str = "", avoid: str = "") -> dict[str, Value]:
    """What HTCondor shall do with the job. ``machine``: the name of this node; ``avoid``: the names of those that
    failed before it, with commas.

    A passing failure runs again, elsewhere. What the site, the image or the job file must fix first is held. The
    guest's and the program's own failures, the walltime, and bugs of ours go back to the user. What the batch system
    stopped runs again by its own rules.
    """
    failure = result.failure if result.outcome == "failed" else None
    again = failure is not None and failure.transient and failure.kind != Interrupted.__name__
    hold = failure is not None and not failure.transient and _somebody_must_mend(failure)
    told: dict[str, Value] = {"VmjobHoldReason": _reason(failure) if failure and (again or hold) else ""}
    if machine:
        told["VmjobAvoid"] = avoided(machine, avoid) if again else avoid
    return {**told, "VmjobRetry": again, "VmjobHold": hold}


def avoided(machine: str, before: str) -> str:
    """The nodes to leave alone, ``machine`` the last of them."""
    names = [name for name in before.replace(" ", "").split(",") if name and name != machine]
    return ",".join([*names, machine][-_AVOID:])


def is_over(result: Result) -> bool:
    """Does the job not run again, neither by what is told to HTCondor nor by its own rules? A token that the pool
    refuses makes no second try worth while."""
    told = decision(result)
    again = told["VmjobRetry"] or told["VmjobHold"] or result.failure_kind == Interrupted.__name__
    return not again or result.failure_kind == TokenRefused.__name__


def _somebody_must_mend(failure: Failure) -> bool:
    return failure.status < _GUEST and failure.kind not in (WalltimeOver.__name__, StageOutFailed.__name__)


def _reason(failure: Failure) -> str:
    return f"{failure.kind}: {failure.message}" + (f" → {failure.hint}" if failure.hint else "")


def summary(result: Result) -> dict[str, Value]:
    """The result in the words of the job's ad. Seconds and bytes."""
    failure, accel = result.failure, result.accelerator
    boot = sum(stage.seconds for stage in result.stages if stage.name == "boot")
    glidein: dict[str, Value] = {"VmjobGlideinJobs": result.glidein.jobs} if result.glidein else {}
    return {
        **glidein,
        "VmjobOutcome": result.outcome, "VmjobStatus": result.status, "VmjobFailure": result.failure_kind,
        "VmjobMessage": failure.message if failure else "", "VmjobHint": failure.hint if failure else "",
        "VmjobAccel": accel.name if accel else "", "VmjobAccelReason": accel.reason if accel else "",
        "VmjobImage": result.image, "VmjobImageDigest": result.image_digest, "VmjobImageBytes": result.bytes_image,
        "VmjobBootSeconds": round(boot, 3),
        "VmjobStageSeconds": " ".join(f"{stage.name}={stage.seconds:.2f}" for stage in result.stages),
    }


# ---------------------------------------------------------------- how


class Announcer(Reporter):
    """Passes everything on to ``inner``, and tells the job's ad of it from a thread of its own: a cut network delays
    nothing but ``finish``. Without ``chirp`` it tells nobody. ``ad``: the job's ad as it was at the start, names in
    lower case; what it says already is not set again."""

    def __init__(self, inner: Reporter, chirp: Optional[Chirp], ad: Mapping[str, str], machine: str = "") -> None:
        self._inner, self._chirp, self._ad, self._machine = inner, chirp, ad, machine
        self._news = threading.Condition()
        self._pending: dict[str, Value] = {}
        self._busy = False
        self._over = chirp is None
        self._deadline = float("inf")
        self._told = {name: text for name, text in ad.items() if name.startswith("vmjob")}
        if chirp is not None:
            threading.Thread(target=self._work, args=(chirp,), name="announce", daemon=True).start()
        # what an earlier start told holds no more; and where nobody lives to tell the end, this node is avoided
        avoid: dict[str, Value] = {"VmjobAvoid": avoided(machine, ad.get("vmjobavoid", ""))} if machine else {}
        self._tell({"VmjobStage": "stage", "VmjobRetry": False, "VmjobHold": False, "VmjobOutcome": "",
                    "VmjobFailure": "", **avoid})

    @classmethod
    def begin(cls, environ: Mapping[str, str], inner: Reporter, chirp: Optional[Chirp],
              root: Path = Path("/")) -> Announcer:
        """An announcer for the slot we are in."""
        machine = readers.ad(environ, root, "_CONDOR_MACHINE_AD").get("machine", "")
        return cls(inner, chirp, readers.ad(environ, root, "_CONDOR_JOB_AD"), machine)

    def finish(self, result: Result) -> None:
        """Tell the end, and wait until HTCondor knows it: FLUSH seconds at most, HURRY where we are being stopped."""
        stopped = result.failure_kind == Interrupted.__name__
        self._deadline = min(self._deadline, time.monotonic() + (HURRY if stopped else FLUSH))
        # the decision first: it matters most, should the time not suffice
        self._tell({**decision(result, self._machine, self._ad.get("vmjobavoid", "")), **summary(result)})
        with self._news:
            while (self._pending or self._busy) and not self._over:
                if time.monotonic() > self._deadline:
                    log.warning("HTCondor could not be told how the run ended: no answer from the submit side")
                    break
                self._news.wait(0.2)
            self._over = True
            self._news.notify_all()

    def hurry(self, _number: int = 0) -> None:
        """Do not wait long any more. Safe in a signal handler."""
        self._deadline = min(self._deadline, time.monotonic() + HURRY)

    # -------------------------------------------------------------- a reporter

    def stage_started(self, name: str) -> None:
        self._tell({"VmjobStage": name})
        self._inner.stage_started(name)

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        self._inner.stage_ended(name, seconds, ok)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        return self._inner.bar(name, total, unit)

    def tick(self, percent: Optional[int] = None) -> None:
        self._inner.tick(percent)

    def output(self, stream: str, data: bytes) -> None:
        self._inner.output(stream, data)

    # -------------------------------------------------------------- details

    def _tell(self, attributes: Mapping[str, Value]) -> None:
        with self._news:
            self._pending.update(attributes)
            self._news.notify_all()

    def _work(self, chirp: Chirp) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                while not self._pending and not self._over:
                    self._news.wait()
                if self._over:
                    return
                name = next(iter(self._pending))
                value = self._pending.pop(name)
                self._busy = True
            if not self._set(chirp, name, value):
                with self._news:
                    self._pending = {name: value, **self._pending}  # unless something newer is there
                    self._news.wait(_PAUSE)

    def _set(self, chirp: Chirp, name: str, value: Value) -> bool:
        """False: worth another try."""
        text = literal(value)
        text = text[1:-1].replace('\\"', '"') if isinstance(value, str) else text
        if self._told.get(name.lower(), "" if isinstance(value, str) else "false") == text:
            return True
        try:
            chirp.set(name, value)
        except ConnectionError as lost:
            log.info("HTCondor does not hear %s: %s", name, lost)
            return False
        except VmjobError as refused:
            log.warning("HTCondor is not told of this run: %s", refused)
            self._over = True
            return True
        self._told[name.lower()] = text
        return True
