"""Jobs in HTCondor: a schedd here or elsewhere, a compute element, or a compute element through the VO's schedd.

State is the schedd's alone: everything is asked from there each time, and nothing is lost with the client.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

from vmjob.batch import carrier, memory, nodes
from vmjob.batch.description import Submission, jobs_description
from vmjob.batch.jobs import ATTRIBUTES, Cluster, JobId, JobInfo, State, among, clusters_of, ended_at, job_of
from vmjob.batch.pool import Pool, quote, translated
from vmjob.batch.targets import Target
from vmjob.core.pool_errors import JobUnknown, NameTaken, PoolError, PoolRefused, PoolUnreachable
from vmjob.core.progress import Reporter
from vmjob.job.parameters import Parameters

_OURS = "VmjobName =!= undefined"
_ACTIVE = "JobStatus != 3 && JobStatus != 4"


class Condor:
    """The verbs of a target in HTCondor. Raises PoolUnreachable, PoolRefused and PoolError throughout."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.pool = Pool(target.place)

    # ------------------------------------------------------------ submitting

    def check(self, submission: Submission) -> nodes.Said:
        """What can be known before anything is sent: NoSlotFits, NameTaken; and what the nodes say."""
        element, said = Pool(self.target.element) if self.target.element else self.pool, nodes.Said()
        try:
            element.check_fits(submission.request)
            found = element.nodes()
            nodes.check(submission.needs, found, str(element.place))
            said = nodes.said_by(found)
        except (PoolUnreachable, PoolRefused):
            if element is self.pool:
                raise  # else: what the VO's schedd may reach, we need not
        self._name_is_free(submission.name)
        return said

    def _name_is_free(self, name: str, below: Optional[int] = None) -> None:
        mine = f"VmjobName == {quote(name)} && {_ACTIVE}" + ("" if below is None else f" && ClusterId < {below}")
        taken = sorted({int(ad["ClusterId"]) for ad in self.pool.query(mine, ["ClusterId"])})
        if taken:
            raise NameTaken(f"jobs named '{name}' are in the queue of {self.target.name} already: {taken[0]}",
                            f"give these another name (--name), or remove those: vmjob rm {taken[0]}")

    def submit(self, submission: Submission, folder: Path, reporter: Reporter) -> int:
        """Send image and payload (the files of ``folder``) and queue the jobs: the cluster's number. All or nothing: of
        a submission that fails nothing stays in the queue but an image that others can use; one that is ``unsure`` was
        cut off while its jobs were queued. How it went is remembered of the target (sitememory)."""
        with memory.noting(self.target.url):
            return self._submit(submission, folder, reporter)

    def _submit(self, submission: Submission, folder: Path, reporter: Reporter) -> int:
        said = self.check(submission)
        self.sweep()
        image = carrier.image_carrier(self.pool, self.target, submission, reporter).place \
            if submission.image_files else ""  # nodes fetch it elsewhere
        queuing = False
        try:
            with ExitStack() as undo:
                payload = carrier.payload_carrier(self.pool, self.target, submission, folder)
                undo.callback(carrier.remove, self.pool, [payload.cluster])
                tokens = carrier.token_carrier(self.pool, self.target, submission, payload, folder, reporter)
                description = jobs_description(self.target, submission, payload.folder, image, tokens.place, said)
                queuing = True
                cluster = self._queue(description, submission.parameters)
                undo.callback(self.remove, [JobId(cluster)])
                self._name_is_free(submission.name, below=cluster)  # of two that came at once the first one stays
                undo.pop_all()
        except PoolError as cut:  # also of what was to be undone
            cut.unsure = queuing and (isinstance(cut, PoolUnreachable) or type(cut) is PoolError)
            raise
        return cluster

    def _queue(self, description: str, parameters: Parameters) -> int:
        import htcondor2

        schedd, submit = self.pool.schedd, htcondor2.Submit(description)
        with translated(self.pool.place):
            if parameters.rows:
                result = schedd.submit(submit, count=1, itemdata=iter([{"parameters": row} for row in parameters.rows]))
            else:
                result = schedd.submit(submit, count=parameters.count)
        return int(result.cluster())

    # ------------------------------------------------------------ looking

    def clusters(self, ids: Sequence[JobId] = ()) -> list[Cluster]:
        """What is in the queue: of ``ids``, or all of ours. Raises JobUnknown for a number that is not there."""
        found = self.found(ids)
        for one in ids:
            cluster = next((c for c in found if c.id == one.cluster), None)
            if not cluster or (one.proc is not None and one.proc < cluster.total - cluster.waiting
                               and not any(one.covers(job.id) for job in cluster.jobs)):
                raise JobUnknown(f"there is no job {one} in the queue of {self.target.name}",
                                 f"vmjob status shows what there is; what has left the queue: vmjob history {one}")
        return found

    def found(self, ids: Sequence[JobId]) -> list[Cluster]:
        """As clusters, without a complaint for what is not there."""
        # what was fetched leaves the queue within a minute
        ads = self.pool.query(_either(ids) if ids else f"{_OURS} && VmjobFetched =!= true", ATTRIBUTES, clusters=True)
        found = [one for one in clusters_of([ad for ad in ads if type(ad.get("VmjobName")) is str])
                 if one.jobs or one.waiting]
        memory.learn(self.target.url, filter(None, (ended_at(job) for one in found for job in one.jobs)))
        return found

    def jobs(self, ids: Sequence[JobId]) -> list[JobInfo]:
        """The jobs in the queue that ``ids`` name."""
        return [job for cluster in self.clusters(ids) for job in cluster.jobs if among(ids, job.id)]

    def history(self, ids: Sequence[JobId] = (), most: int = 50) -> list[JobInfo]:
        """Jobs that have left the queue, latest first."""
        ours, schedd = self.pool.ours, self.pool.schedd
        with translated(self.pool.place):
            ads = list(schedd.history(f"{ours} && ({_either(ids)})", ATTRIBUTES, most))
        return [job_of(ad) for ad in ads]

    # ------------------------------------------------------------ acting

    def remove(self, ids: Sequence[JobId]) -> tuple[int, int]:
        """Remove jobs, and a submission's payload when none of its jobs is left; how many jobs were removed, and the
        results of how many of them nobody had fetched."""
        self.clusters(ids)  # is each of them there?
        before = self.found([JobId(number) for number in {one.cluster for one in ids}])
        self._act("Remove", ids, "removed with vmjob rm")
        whole = [c for c in before if JobId(c.id) in ids]
        last = [c for c in before if c in whole or (not c.waiting and all(
            among(ids, job.id) or job.fetched or job.state is State.REMOVED for job in c.jobs))]
        left = self._until_gone({c.id for c in last})
        gone = [carrier.of_payload(c.payload) for c in last if c.id not in left]
        carrier.remove(self.pool, [one for one in gone if one is not None])
        jobs = [job for c in before for job in c.jobs if among(ids, job.id)]
        return len(jobs) + sum(c.waiting for c in whole), sum(job.results and not job.fetched for job in jobs)

    def sweep(self) -> None:
        """Remove payloads, and with them tokens, whose jobs are gone."""
        carrier.remove(self.pool, carrier.orphans(self.pool), "the jobs it was for are gone")

    def remove_images(self) -> tuple[int, int]:
        """Remove the images that this target keeps for us, but for those that jobs in the queue still need: how many
        are gone, and how many stay."""
        kept = self.pool.query('VmjobHolds == "image" && JobStatus != 3', ["ClusterId", "VmjobWhat"])
        needed = {ad.get("VmjobImageDigest") for ad in
                  self.pool.query(f"{_OURS} && {_ACTIVE}", ["VmjobImageDigest"], clusters=True)}
        gone = [int(ad["ClusterId"]) for ad in kept if ad.get("VmjobWhat") not in needed]
        carrier.remove(self.pool, gone)
        return len(gone), len(kept) - len(gone)

    def _until_gone(self, clusters: set[int], patience: float = 30) -> set[int]:
        """A job that runs is asked to end first; its log is in the payload's folder. Those that are still there."""
        deadline, left = time.monotonic() + patience, clusters
        while left and time.monotonic() < deadline:
            left = clusters & {c.id for c in self.found([])}
            if left:
                time.sleep(0.5)
        return left

    def release(self, ids: Sequence[JobId]) -> int:
        """Let held jobs run again, with all their tries; how many."""
        held = [str(job.id) for job in self.jobs(ids) if job.state is State.HELD]
        if held:
            with translated(self.pool.place):
                self.pool.schedd.edit(held, "NumJobCompletions", "0")
            self._act("Release", ids, "released with vmjob release", " && JobStatus == 5")
        return len(held)

    def _act(self, action: str, ids: Sequence[JobId], why: str, also: str = "") -> None:
        import htcondor2

        constraint = f"{self.pool.ours} && {_OURS} && ({_either(ids)}){also}"
        with translated(self.pool.place):
            answer = self.pool.schedd.act(getattr(htcondor2.JobAction, action), constraint, why)
        if answer.get("TotalPermissionDenied"):
            raise PoolRefused(f"{self.target.name} does not let us do this to {answer['TotalPermissionDenied']} jobs",
                              "they belong to somebody else")

    # ------------------------------------------------------------ results

    def bring(self, jobs: Sequence[JobInfo], kinds: Sequence[str], folder: Path) -> None:
        """Copy what ended jobs left at the schedd into ``folder``: ``results-N.tar``, ``out-N.txt``, ``err-N.txt`` for
        the ``kinds`` of results, out and err. Raises TransferFailed."""
        by_payload: dict[str, list[JobInfo]] = {}
        for job in jobs:
            by_payload.setdefault(job.payload, []).append(job)
        for payload, members in by_payload.items():
            names = [file_name(kind, job.id) for job in members for kind in kinds]
            carrier.bring(self.pool, payload, names, folder)

    def fetched(self, jobs: Sequence[JobInfo]) -> None:
        """The results of these are safe with the user: they may leave the queue (which the schedd looks at now and
        then), and a payload of which all were fetched goes."""
        done = [str(job.id) for job in jobs if job.state is State.DONE]
        if done:
            with translated(self.pool.place):
                self.pool.schedd.edit(done, "VmjobFetched", "true")
        for cluster in self.found([JobId(number) for number in {job.id.cluster for job in jobs}]):
            payload = carrier.of_payload(cluster.payload)
            if payload is not None and not cluster.waiting and all(job.fetched for job in cluster.jobs):
                carrier.remove(self.pool, [payload])


def file_name(kind: str, job: JobId) -> str:
    """What the submit files call the results, out and err of a job."""
    return f"{kind}-{job.proc}.{'tar' if kind == 'results' else 'txt'}"


def _either(ids: Sequence[JobId]) -> str:
    return " || ".join(one.constraint for one in ids) if ids else _OURS
