"""Where the submit side keeps what slots fetch, an image or a token: the folder of a job that only carries it."""

from __future__ import annotations

import re

from vmjob.core.errors import JobError
from vmjob.slot.chirp import Chirp

# HTCondor's spool: SPOOL/(cluster mod 10000)/(proc mod 10000)/clusterC.procP.subproc0
_SPOOLED = re.compile(r"(/.*)/\d+/\d+/cluster\d+\.proc\d+\.subproc\d+/*\Z", re.ASCII)


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
