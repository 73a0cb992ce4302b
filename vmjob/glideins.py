"""The words of glide-ins: a guest that becomes a worker of the VO's own HTCondor pool. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

Literal = Union[str, int, float, bool]


@dataclass(frozen=True)
class Glidein:
    """What a glide-in does instead of a command. Times in seconds.

    ``pool``: HOST[:PORT] of the VO's collector; ``token``: on the submit side the file with an IDTOKEN that may
    advertise worker nodes there, empty elsewhere. ``site``, ``resource``: GLIDEIN_Site and GLIDEIN_ResourceName of the
    machine ad. ``idle``: without a job for so long, it ends. ``lifetime``: it ends after so long although the slot has
    more time. ``longest_job``: no job is taken that would have less time than this. ``start``: a ClassAd expression
    that jobs must meet; ``attributes``: more of the machine ad. ``condor``: the input that is a tarball of HTCondor,
    where the image has none.
    """

    pool: str
    token: str = ""
    site: str = ""
    resource: str = ""
    idle: int = 600
    lifetime: Optional[int] = None
    longest_job: Optional[int] = None
    start: str = ""
    attributes: tuple[tuple[str, Literal], ...] = ()
    condor: str = ""


@dataclass(frozen=True)
class Worked:
    """What a glide-in has done. ``jobs`` that ended in it, in whatever way; ``busy_seconds``: their times by the clock,
    added up over the guest's CPUs (so at most CPUs × ``seconds``); ``seconds``: as long as the guest took jobs;
    ``name``: the guest's in the pool."""

    name: str
    jobs: int = 0
    evicted: int = 0
    busy_seconds: float = 0.0
    seconds: float = 0.0
