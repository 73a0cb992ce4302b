"""What slots fetch from the submit side: where an image or a token is there, the folder of a job that only carries it;
and a glide-in's token on its last way, into the slot's memory: out of a file beside the payload, which is blanked, or
from the submit side, where it stays for as long as the job may run again."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Optional

from vmjob.core.errors import JobError, TokenRefused, VmjobError
from vmjob.core.files import SECRET, take_secret
from vmjob.core.ownnames import TOKEN
from vmjob.slot.chirp import Chirp, unavailable

log = logging.getLogger("vmjob.slot")

# HTCondor's spool: SPOOL/(cluster mod 10000)/(proc mod 10000)/clusterC.procP.subproc0
_SPOOLED = re.compile(r"(/.*)/\d+/\d+/cluster\d+\.proc\d+\.subproc\d+/*\Z", re.ASCII)
_PATIENCE = 60.0  # seconds for removing it where the network is cut


def take(at: str, payload: Path) -> str:
    """The token in the payload folder, gone from there from now on; empty where there is none. ``at``: a name there, or
    a place at the submit side (then, as without one, it is the name that vmjob pack gives). Raises OSError."""
    return take_secret(payload / (at if at and "/" not in at else TOKEN))


def fetch(at: str, chirp: Optional[Chirp]) -> str:
    """The token from the submit side. ``at``: its folder there, or the CLUSTER.PROC of the job that carries it, a slash
    and its name; without these there is none. Raises TokenRefused, ChirpFailed, JobError."""
    if "/" not in at:
        raise TokenRefused("there is no token in the payload", "one serves for a single start: pack or submit it again")
    if chirp is None:
        raise unavailable("the token")
    try:
        text = chirp.read(_path(at, chirp), SECRET).decode(errors="replace")
    except FileNotFoundError as missing:
        raise TokenRefused(f"the token is gone: {missing}", "a job that has ended cannot run again: submit a new one") \
            from missing
    if not text:
        raise TokenRefused(f"{at}: the token is empty", "submit again")
    return text


def remove(at: str, chirp: Optional[Chirp]) -> None:
    """Remove the token from the submit side: the job is over. Never raises; what cannot be removed now goes with the
    submission."""
    if "/" not in at or chirp is None:
        return
    try:
        chirp.remove(_path(at, chirp), _PATIENCE)
    except VmjobError as failure:
        log.warning("the token stays at the submit side until the job is removed there: %s", failure)


def _path(at: str, chirp: Chirp) -> str:
    place, _, name = at.rpartition("/")
    return f"{find(place, chirp)}/{name}"


def find(place: str, chirp: Chirp) -> str:
    """:func:`folder` for the job that we are. Raises JobError, ChirpFailed."""
    return folder(place, "" if place.startswith("/") else chirp.get("Iwd"))


def folder(place: str, iwd: str) -> str:
    """``place`` itself where it is an absolute folder; for the carrier's ``CLUSTER.PROC`` its spool folder, found by
    our own job's (``iwd``), which is a neighbour. Raises JobError."""
    if place.startswith("/"):
        return place.rstrip("/") or "/"
    number = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", place)
    if not number:
        raise JobError(f"{place} at the submit side: neither an absolute folder nor the CLUSTER.PROC of a job",
                       "submit again with vmjob submit")
    spool = _SPOOLED.match(iwd)
    if not spool:
        raise JobError(f"{place} at the submit side: the folder of this job there ({iwd or 'unknown'}) is none of "
                       "HTCondor's spool, so that the other's cannot be found beside it",
                       "set image: job for this target in targets.yaml: image and token then travel with every job")
    cluster, proc = map(int, number.groups())
    return f"{spool.group(1)}/{cluster % 10000}/{proc % 10000}/cluster{cluster}.proc{proc}.subproc0"
