"""A Reporter of several runs in a row, shown as steps of one bar."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from vmjob.core.errors import Interrupted
from vmjob.core.model import Boot, Job
from vmjob.core.progress import Bar, Reporter
from vmjob.core.result import Result
from vmjob.run import compose
from vmjob.run.guest import BOOT_ATTEMPTS
from vmjob.run.here import run_job
from vmjob.vetting import selftest

STAGES = 7  # of a run, for the bar


# Seconds that a script of ours may take in a guest that is emulated on a busy machine. A broken guest waits for ever.
_PATIENCE = 600


class Watch(Reporter):
    """Shows the stages of several runs as steps of one bar, and keeps the beginning of what the last program said."""

    def __init__(self, outer: Reporter, bar: Bar) -> None:
        self._outer, self._bar, self._begun, self._stages = outer, bar, 0, 0
        self.streams: dict[str, bytes] = {}

    def run(self, job: Job, base: Path, results: Path) -> Result:
        """Raises Interrupted (somebody wants us to end, not this run alone), and as run_job."""
        self.streams = {"stdout": b"", "stderr": b""}
        self._begun, self._stages = self._begun + 1, 0
        result = run_job(job, base=base, results=results, reporter=self)
        self._bar.set(self._begun * STAGES)
        if result.failure and result.failure_kind == "Interrupted":
            raise Interrupted(result.failure.message, "the images were not looked at to the end")
        return result

    def stage_ended(self, name: str, seconds: float, ok: bool) -> None:
        self._stages = min(self._stages + 1, STAGES)
        self.tick()

    def tick(self, percent: Optional[int] = None) -> None:
        self._bar.set((self._begun - 1) * STAGES + self._stages)

    def bar(self, name: str, total: Optional[float], unit: str = "B") -> Bar:
        return self._outer.bar(name, total, unit)

    def output(self, stream: str, data: bytes) -> None:
        self.streams[stream] += data[:selftest.STDOUT_LIMIT - len(self.streams[stream])]


def walltime_of(boot: Boot) -> int:
    """Seconds that a run of a script of ours may take, by the image's boot method."""
    return BOOT_ATTEMPTS * compose.timeouts(boot)[0] + _PATIENCE
