"""Waiting for jobs: the queue and, for those that have left it, the history, asked again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vmjob.batch.condor import Condor
from vmjob.batch.jobs import ENDED, JobId, JobInfo, among
from vmjob.core.errors import VmjobError
from vmjob.core.pool_errors import JobUnknown

PATIENCE = 600.0  # seconds for which a schedd may be away: it is restarted, or the network is cut
_LOOKS = 5  # for a job between queue and history
_GROUP = 50  # ids asked for at once; HTCondor's expressions may not be endless


class Following:
    """What is known of some jobs. ``poll`` asks for more; ``note`` hears what a person should know meanwhile."""

    def __init__(self, batch: Condor, ids: Sequence[JobId], note: Callable[[str], None]) -> None:
        self._batch, self._ids, self._note = batch, list(ids), note
        self._known: dict[JobId, JobInfo] = {}
        self._missed: dict[JobId, int] = {}
        self._away = 0.0
        self.waiting = 0

    @property
    def jobs(self) -> list[JobInfo]:
        return sorted(self._known.values(), key=lambda job: (job.id.cluster, job.id.proc or 0))

    @property
    def ended(self) -> int:
        return sum(job.state in ENDED for job in self._known.values())

    @property
    def over(self) -> bool:
        """Nothing runs or may still run; a held job has ended as far as waiting goes."""
        return bool(self._known) and not self.waiting and self.ended == len(self._known)

    def poll(self) -> None:
        """Ask once. A schedd that is away is waited for; raises its error after PATIENCE, JobUnknown at once."""
        try:
            self._ask()
            self._away = 0.0
        except VmjobError as error:
            if not error.transient or not self._known:
                raise
            if not self._away:
                self._away = time.monotonic()
                self._note(f"{error.message}; waiting for it")
            elif time.monotonic() - self._away > PATIENCE:
                raise

    def _ask(self) -> None:
        found = self._batch.found(self._ids)
        here = {job.id: job for cluster in found for job in cluster.jobs if among(self._ids, job.id)}
        self.waiting = sum(cluster.waiting for cluster in found if among(self._ids, JobId(cluster.id)))
        gone = [job for job in self._known if job not in here and self._known[job].state not in ENDED]
        if not self._known:
            gone += [one for one in self._ids if not any(one.covers(job) for job in here) and
                     one.cluster not in {cluster.id for cluster in found if cluster.waiting}]
        self._known.update(here)
        past = self._past(gone)
        for one in gone:
            if not any(one.covers(job) for job in past):
                self._lost(one)
        self._known.update(past)

    def _past(self, gone: Sequence[JobId]) -> dict[JobId, JobInfo]:
        found: dict[JobId, JobInfo] = {}
        for start in range(0, len(gone), _GROUP):
            most = 1_000_000 if any(one.proc is None for one in gone) else _GROUP
            found.update({job.id: job for job in self._batch.history(gone[start:start + _GROUP], most)})
        return found

    def _lost(self, one: JobId) -> None:
        self._missed[one] = self._missed.get(one, 0) + 1
        if self._missed[one] >= _LOOKS or not self._known:
            raise JobUnknown(f"there is no job {one} in the queue of {self._batch.target.name}, nor in its history",
                             "vmjob status shows what there is")
