"""The words of glide-ins: a guest that becomes a worker of the VO's own HTCondor pool. No I/O here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional, Union

from vmjob.core.codec import DURATION, SECRET
from vmjob.core.errors import WalltimeTooShort
from vmjob.core.units import format_duration

Literal = Union[str, int, float, bool]

# Seconds from ToDie to the end of the slot: what still runs goes back to the pool's queue, and the logs come out.
DRAIN = 60
# Seconds that a guest may take until it takes jobs. Only for telling a walltime without sense before it is submitted.
BOOT = 60
SYSTEM_DISK = 2**30  # bytes that the guest itself may write to its disk, beside the jobs
PORT = 9618  # a collector's, where none is named
FOLDER = "glidein"  # the output of a glide-in: HTCondor's logs


@dataclass(frozen=True)
class Glidein:
    """What a glide-in does instead of a command. Times in seconds.

    ``pool``: HOST[:PORT] of the VO's collector; ``token``: on the submit side the file with an IDTOKEN that may
    advertise worker nodes there, empty elsewhere. ``site``, ``resource``: GLIDEIN_Site and GLIDEIN_ResourceName of the
    machine ad. ``idle``: without a job for so long, it ends. ``lifetime``: it ends after so long although the slot has
    more time. ``longest_job``: no job is taken that would have less time than this. ``jobs``: of one CPU, at once;
    None: as many as there are CPUs. ``start``: a ClassAd expression that jobs must meet; ``attributes``: more of the
    machine ad. ``condor``: the input that is a tarball of HTCondor, where the image has none.
    """

    pool: str
    token: str = field(default="", metadata=SECRET)
    site: str = ""
    resource: str = ""
    idle: int = field(default=600, metadata=DURATION)
    lifetime: Optional[int] = field(default=None, metadata=DURATION)
    longest_job: Optional[int] = field(default=None, metadata=DURATION)
    jobs: Optional[int] = None
    start: str = ""
    attributes: tuple[tuple[str, Literal], ...] = ()
    condor: str = ""

    def slots(self, cpus: int) -> int:
        """The CPUs that HTCondor sees in a guest of so many."""
        return self.jobs or cpus


@dataclass(frozen=True)
class Worked:
    """What a glide-in has done: ``jobs`` that ended in it, in whatever way, and those that went back to the queue
    (``evicted``); ``busy_seconds``: the times of all by the clock, each times its CPUs (so at most the guest's CPUs ×
    ``seconds``); ``seconds``: as long as it was a worker of the pool; ``name``: the guest's there."""

    name: str
    jobs: int = 0
    evicted: int = 0
    busy_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Times:
    """Seconds from now on, None: no end. ``retire``: no more jobs are taken; ``die``: those that run are sent back."""

    retire: Optional[int] = None
    die: Optional[int] = None


def with_port(pool: str) -> str:
    """A collector's address HOST[:PORT] as HOST:PORT."""
    return pool if re.search(r"[^:]:[0-9]+$|\]:[0-9]+$", pool) else f"{pool}:{PORT}"


def longest_job(glidein: Glidein, time: int) -> int:
    """Seconds that a job may take, in a slot with ``time`` seconds: what was asked for, else a third."""
    return glidein.longest_job if glidein.longest_job is not None else time // 3


def check_walltime(glidein: Glidein, walltime: Optional[int], where: str) -> None:
    """Before anything is submitted: is there time for at least one job? Raises WalltimeTooShort."""
    longest = glidein.longest_job or 0
    if glidein.lifetime is not None and longest > glidein.lifetime:
        raise WalltimeTooShort(f"{where}: glidein.lifetime is {format_duration(glidein.lifetime)}, and the longest job "
                               f"{format_duration(longest)}", "raise lifetime, or lower glidein.longest_job")
    if walltime is not None and walltime - BOOT - DRAIN < max(longest, 1):
        job = f"a job {format_duration(longest)}" if longest else "a job its own time"
        raise WalltimeTooShort(
            f"{where}: a walltime of {format_duration(walltime)} is too short for a glide-in: the start takes up to "
            f"{format_duration(BOOT)}, the end {format_duration(DRAIN)}, and {job}",
            f"ask for {format_duration(2 * (BOOT + DRAIN + longest))} or more (resources.walltime)"
            + (", or lower glidein.longest_job" if longest else ""))


def times(glidein: Glidein, left: Optional[float]) -> Times:
    """When to retire and die in a slot that has ``left`` seconds (None: no limit). Raises WalltimeTooShort."""
    ends = [end for end in (None if left is None else left - DRAIN, glidein.lifetime) if end is not None]
    if not ends:
        return Times()
    die = int(min(ends))
    retire = die - longest_job(glidein, die)
    if retire <= 0:
        raise WalltimeTooShort(f"the slot has {format_duration(max(0.0, left or 0.0))} left when the guest is up: no "
                               "job of the pool would have enough time",
                               "ask the batch system for more walltime, or lower glidein.longest_job")
    return Times(retire, die)


def reserved_memory(cpus: int) -> int:
    """MiB of a guest's memory that are not for jobs: kernel, daemons, and a starter for each job."""
    return 96 + 24 * cpus
