"""Where the submit side keeps the files of an image that slots fetch: the folder of a job that only carries them."""

from __future__ import annotations

import re

from vmjob.errors import JobError

# HTCondor's spool: SPOOL/(cluster mod 10000)/(proc mod 10000)/clusterC.procP.subproc0
_SPOOLED = re.compile(r"(/.*)/\d+/\d+/cluster\d+\.proc\d+\.subproc\d+/*\Z")


def folder(place: str, iwd: str) -> str:
    """``place`` itself where it is an absolute folder; for the carrier's ``CLUSTER.PROC`` its spool folder, found by
    our own job's (``iwd``), which is a neighbour. Raises JobError."""
    if place.startswith("/"):
        return place.rstrip("/") or "/"
    number = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", place)
    if not number:
        raise JobError(f"--image-at {place}: neither an absolute folder nor the CLUSTER.PROC of a job",
                       "submit again with vmjob submit")
    spool = _SPOOLED.match(iwd)
    if not spool:
        raise JobError(f"--image-at {place}: the folder of this job at the submit side ({iwd or 'unknown'}) is none of "
                       "HTCondor's spool, so that of the image cannot be found beside it",
                       "set image: job for this target in targets.yaml: the image then travels with every job")
    cluster, proc = map(int, number.groups())
    return f"{spool.group(1)}/{cluster % 10000}/{proc % 10000}/cluster{cluster}.proc{proc}.subproc0"
