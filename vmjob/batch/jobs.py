"""Job ads as typed values: what the user sees of a job, whatever queue it is in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Optional

from vmjob.errors import HostError, JobError
from vmjob.sitememory import Ended

# What a JobInfo is made of; asked for by name, as an ad has some 150 attributes.
ATTRIBUTES = [
    "ClusterId", "ProcId", "JobStatus", "HoldReason", "HoldReasonCode", "QDate", "ExitCode", "ExitSignal",
    "ExitBySignal", "RemoteHost", "LastRemoteHost", "JobStartDate", "JobCurrentStartDate", "CompletionDate",
    "EnteredCurrentStatus", "NumJobStarts", "Args", "GridJobId", "TotalSubmitProcs", "JobMaterializeNextProcId",
    "JobMaterializeLimit",
    "VmjobName", "VmjobImage", "VmjobImageDigest", "VmjobPayload", "VmjobStage", "VmjobAccel", "VmjobOutcome",
    "VmjobStatus", "VmjobFailure", "VmjobMessage", "VmjobHint", "VmjobBootSeconds", "VmjobStageSeconds",
    "VmjobImageBytes", "VmjobFetched",
]


class State(str, Enum):
    """HTCondor's job states, and ``waiting``: not yet made of its cluster (late materialisation)."""

    WAITING = "waiting"
    IDLE = "idle"
    RUNNING = "running"
    REMOVED = "removed"
    DONE = "done"
    HELD = "held"
    TRANSFERRING = "transferring"
    SUSPENDED = "suspended"


_STATES = {1: State.IDLE, 2: State.RUNNING, 3: State.REMOVED, 4: State.DONE, 5: State.HELD, 6: State.TRANSFERRING,
           7: State.SUSPENDED}
_ON_EXIT = 3  # HoldReasonCode
ENDED = (State.DONE, State.HELD, State.REMOVED)


@dataclass(frozen=True)
class JobId:
    """One job of a cluster, or with ``proc`` None all of it."""

    cluster: int
    proc: Optional[int] = None

    def __str__(self) -> str:
        return str(self.cluster) if self.proc is None else f"{self.cluster}.{self.proc}"

    def covers(self, other: JobId) -> bool:
        return self.cluster == other.cluster and self.proc in (None, other.proc)

    @property
    def constraint(self) -> str:
        """For jobs and, of a late-materialised cluster, the cluster's own ad."""
        own = "" if self.proc is None else f" && (ProcId == {self.proc} || isUndefined(ProcId))"
        return f"(ClusterId == {self.cluster}{own})"


def among(ids: Sequence[JobId], job: JobId) -> bool:
    """Does one of ``ids`` name the job? None at all name every job."""
    return not ids or any(one.covers(job) for one in ids)


def parse_id(text: str) -> JobId:
    """``CLUSTER`` or ``CLUSTER.PROC``. Raises JobError."""
    found = re.fullmatch(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?", text)
    if not found:
        raise JobError(f"'{text}' is no job number", "as vmjob submit printed it: 42, or 42.3 for one of its jobs")
    return JobId(int(found[1]), int(found[2]) if found[2] else None)


@dataclass(frozen=True)
class JobInfo:
    """One job as of now. Times in epoch seconds and seconds, sizes in bytes; None: not (yet) known. ``results``: its
    wrapper has ended in order, and what it left is at the schedd."""

    id: JobId
    name: str
    state: State
    stage: str = ""
    node: str = ""
    accelerator: str = ""
    image: str = ""
    image_digest: str = ""
    parameters: str = ""
    outcome: str = ""
    status: Optional[int] = None
    failure: str = ""
    reason: str = ""
    hint: str = ""
    submitted: Optional[float] = None
    started: Optional[float] = None
    ended: Optional[float] = None
    starts: int = 0
    boot_seconds: Optional[float] = None
    stage_seconds: str = ""
    image_bytes: Optional[int] = None
    fetched: bool = False
    results: bool = False
    grid_id: str = ""
    payload: str = ""

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        from dataclasses import asdict

        return {**asdict(self), "id": str(self.id), "state": self.state.value}


@dataclass(frozen=True)
class Cluster:
    """All jobs of one submission; ``waiting``: how many are not made yet."""

    id: int
    name: str
    total: int
    waiting: int
    jobs: tuple[JobInfo, ...]
    payload: str = ""


def job_of(ad: Any) -> JobInfo:
    """A JobInfo from a job ad (from the queue or the history). What the node told counts where it is of the try that
    ended last."""
    words = _Words(ad)
    state = _STATES.get(words.whole("JobStatus") or 0, State.IDLE)
    # a job can be held before it ever ran, or while it ran: only on_exit_hold (3) leaves results
    results = state is State.DONE or (state is State.HELD and words.whole("HoldReasonCode") == _ON_EXIT)
    fetched = ad.get("VmjobFetched") is True
    status = words.exit_status() if results else None
    told = status is not None and words.whole("VmjobStatus") == status
    return JobInfo(
        id=JobId(words.whole("ClusterId") or 0, words.whole("ProcId")), name=job_name(words.text("VmjobName")),
        state=state, stage=words.text("VmjobStage") if state in (State.RUNNING, State.SUSPENDED) else "",
        node=_node(words), accelerator=words.text("VmjobAccel"), image=words.text("VmjobImage"),
        image_digest=words.text("VmjobImageDigest"), parameters=_parameters(words.text("Args")),
        outcome=words.text("VmjobOutcome") if told else "", status=status,
        failure=words.text("VmjobFailure") if told else "",
        reason=words.text("HoldReason") if state is State.HELD else words.text("VmjobMessage") if told else "",
        hint=words.text("VmjobHint") if told else "", submitted=words.real("QDate"),
        started=words.real("JobCurrentStartDate") or words.real("JobStartDate"),
        ended=words.real("CompletionDate") or (words.real("EnteredCurrentStatus") if state in ENDED else None),
        starts=words.whole("NumJobStarts") or 0, boot_seconds=words.real("VmjobBootSeconds"),
        stage_seconds=words.text("VmjobStageSeconds"), image_bytes=words.whole("VmjobImageBytes"),
        fetched=fetched, results=results and not fetched, grid_id=words.text("GridJobId"),
        payload=words.text("VmjobPayload"))


# of any number in an ad, and of one of seconds, which is shown as a time; not so are NaN and infinity
_MOST, _LAST = 2**63, 1e12
# Failures of a job that are its site's, or one node's of it.
_SITES = {"PolicyRefused", "PolicyBroken", "ScratchFull", *(one.__name__ for one in HostError.__subclasses__())}


def ended_at(job: JobInfo) -> Optional[Ended]:
    """What a job's end tells of its site; None while it has not ended, or did so for other reasons."""
    if not job.outcome or not job.ended or (job.failure and job.failure not in _SITES):
        return None
    return Ended(str(job.id), job.ended, job.failure, job.reason)


def job_name(text: str) -> str:
    """The name of a submission, which also names folders: what is none comes from a stranger."""
    return text if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) else "job"


def clusters_of(ads: list[Any]) -> list[Cluster]:
    """Clusters, oldest first, from a query that included the clusters' own ads."""
    jobs: dict[int, list[JobInfo]] = {}
    heads: dict[int, Any] = {}
    for ad in ads:
        cluster = _Words(ad).whole("ClusterId") or 0
        jobs.setdefault(cluster, [])
        if _Words(ad).whole("ProcId") is None:
            heads[cluster] = ad
        else:
            jobs[cluster].append(job_of(ad))
    found = []
    for cluster, members in sorted(jobs.items()):
        members.sort(key=lambda job: job.id.proc or 0)
        head = _Words(heads.get(cluster, {}))
        # while not one job is made (the schedd is full), only the limit tells how many there will be
        total = head.whole("TotalSubmitProcs") or head.whole("JobMaterializeLimit") or len(members)
        made = head.whole("JobMaterializeNextProcId")
        name = job_name(head.text("VmjobName") or (members[0].name if members else ""))
        # a node can change its job's ad; the cluster's it cannot
        payload = head.text("VmjobPayload") or (members[0].payload if members else "")
        found.append(Cluster(cluster, name, max(total, len(members)), max(0, total - made) if made is not None else 0,
                             tuple(replace(job, payload=payload) for job in members), payload))
    return found


def _node(words: _Words) -> str:
    """``slot1_2@n1.example.org`` is the node n1.example.org."""
    return (words.text("RemoteHost") or words.text("LastRemoteHost")).rpartition("@")[2]


def _parameters(arguments: str) -> str:
    found = re.search(r"--parameters[= ](\S*)", arguments)
    if not found:
        return ""
    from urllib.parse import parse_qsl

    words = " ".join(f"{key}={value}" for key, value in parse_qsl(found[1], keep_blank_values=True))
    return "".join(c if c.isprintable() else " " for c in words)


class _Words:
    """Values of an ad by type; what is undefined, an expression or of another type is None or empty. Text of a job may
    come from a hostile guest, so that it is made fit for a terminal here."""

    def __init__(self, ad: Any) -> None:
        self.ad = ad

    def text(self, key: str) -> str:
        value = self.ad.get(key)
        return "".join(c if c.isprintable() else " " for c in value) if type(value) is str else ""

    def whole(self, key: str) -> Optional[int]:
        value = self.ad.get(key)
        return int(value) if type(value) in (int, float) and abs(value) < _MOST else None

    def exit_status(self) -> Optional[int]:
        """As a shell tells it; what is none (a strange schedd) is 1."""
        status = self.whole("ExitCode")
        if self.ad.get("ExitBySignal") is True:
            status = 128 + (self.whole("ExitSignal") or 0)
        return status if status is None or 0 <= status <= 255 else 1

    def real(self, key: str) -> Optional[float]:
        value = self.ad.get(key)
        return float(value) if type(value) in (int, float) and 0 < value < _LAST else None


def first_failure(statuses: Sequence[Optional[int]]) -> int:
    """The exit status for many: the first that is not 0."""
    return next((status for status in statuses if status), 0)
