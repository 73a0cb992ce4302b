"""Carriers: jobs that never run, whose spool folder at a schedd holds files for the jobs that do.

HTCondor spools files for single jobs only, and sends a job's files to its node each time. So an image is spooled once
for all submissions that use it (and fetched from there once per node), and the payload once for the N jobs of a
submission, whose results come back into the same folder. What is written here is all the state there is.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from vmjob.batch.description import Submission, carrier_description
from vmjob.batch.pool import Pool, named, number, quote, translated
from vmjob.batch.targets import Target
from vmjob.core import config, locks, process
from vmjob.core.errors import VmjobError
from vmjob.core.pool_errors import PoolError, PoolUnreachable, TransferFailed
from vmjob.core.progress import Bar, Reporter
from vmjob.core.units import format_size

_DAY = 24 * 3600
KEEP_IMAGE = 60 * _DAY  # seconds after the last submission that used it
KEEP_TOKEN = 30 * _DAY  # and not longer than it is good for
KEEP_PAYLOAD = 365 * _DAY  # while its jobs are in the queue; what has none is removed as an orphan
_LEFT = 600  # seconds after its files came for which a payload may have no jobs
_STAGE_IN = 3600  # seconds until files that were sent to a schedd must have come on to the compute element
_UNREACHED = 60  # seconds for which a compute element may be away
_GROUP = 100  # files asked for at once


@dataclass(frozen=True)
class Carrier:
    """``folder``: where the files are at the schedd. ``remote``: CLUSTER.PROC at the compute element, if carried on."""

    cluster: int
    folder: str
    remote: str = ""

    @property
    def place(self) -> str:
        """Where a node finds the files (slot-run --image-at)."""
        return self.remote or self.folder


def image_carrier(pool: Pool, target: Target, submission: Submission, reporter: Reporter) -> Carrier:
    """The carrier of the image: the one that is there, else a new one (removed again if it fails).

    Raises TransferFailed and the errors of Pool."""
    grid = target.element is not None
    fits = f'VmjobHolds == "image" && VmjobWhat == {quote(submission.digest)} && StageInFinish =!= undefined'
    if grid:
        fits += f" && GridResource == {quote(target.grid_resource)} && JobStatus != 5 && JobStatus < 3"
    for ad in pool.query(fits, ["ClusterId", "Iwd", "GridJobId"]):
        cluster = int(ad["ClusterId"])
        with translated(pool.place):
            pool.schedd.edit(f"{cluster}.0", "VmjobKeepUntil", str(int(time.time()) + KEEP_IMAGE))
        found = Carrier(cluster, str(ad["Iwd"]), _remote_id(ad))
        return found if found.remote or not grid else _carried_on(pool, target, found, reporter)
    size = sum(path.stat().st_size for path in submission.image_files.values())
    reporter.note(f"the image {submission.image} ({format_size(size)}) goes to {target.name}, once")
    files = [submission.image_files[sha256] for sha256 in sorted(submission.image_files)]
    text = carrier_description(target, "image", submission.digest, submission.image, files, KEEP_IMAGE, grid=grid)
    with reporter.bar(f"send {submission.image}", size) as bar:
        made = _spool(pool, text, bar)
    try:
        _until(pool, made.cluster, lambda ad: ad.get("StageInFinish") is not None, "spooled")
        return _carried_on(pool, target, made, reporter) if grid else made
    except BaseException:
        remove(pool, [made.cluster])
        raise


def payload_carrier(pool: Pool, target: Target, submission: Submission, folder: Path) -> Carrier:
    """A new carrier with the payload's files, and the tokens unless they must go on alone (token_carrier). The caller
    removes it if the submission fails."""
    tokens = () if _tokens_alone(target) else submission.tokens
    files = [folder / name for name in (*submission.files, *tokens)]
    keep = token_life(folder / tokens[0]) if tokens else KEEP_PAYLOAD
    return _spool(pool, carrier_description(target, "payload", submission.name, f"of {submission.name}", files, keep))


def token_carrier(pool: Pool, target: Target, submission: Submission, payload: Carrier, folder: Path,
                  reporter: Reporter) -> Carrier:
    """Where the tokens are for the nodes: with the payload; at a compute element behind the VO's schedd with a carrier
    of their own (of a job's own spool there HTCondor sends all to the node), which goes when the payload's does."""
    if not submission.tokens or not _tokens_alone(target):
        return payload
    files = [folder / name for name in submission.tokens]
    text = carrier_description(target, "token", str(payload.cluster), f"for {submission.name}", files,
                               token_life(files[0]), grid=True)
    return _carried_on(pool, target, _spool(pool, text), reporter)


def token_life(path: Path) -> int:
    """Seconds for which a token may lie at a schedd."""
    from vmjob.core.tokens import claims_of

    claims = claims_of(path.read_text(encoding="ascii", errors="replace").strip())
    left = claims.expires - time.time() if claims and claims.expires is not None else KEEP_TOKEN
    return int(max(0.0, min(left, KEEP_TOKEN)))


def _tokens_alone(target: Target) -> bool:
    return target.element is not None and not target.image_with_job


def _spool(pool: Pool, description: str, bar: Optional[Bar] = None) -> Carrier:
    """``bar``: shows the bytes that went; the bindings stand still meanwhile, so that they work in a child then."""
    import htcondor2

    schedd = pool.schedd
    with translated(pool.place):
        result = schedd.submit(htcondor2.Submit(description), spool=True)
    cluster = int(result.cluster())
    try:
        # when this returns the schedd has the files in their place
        if bar is None:
            with translated(pool.place):
                schedd.spool(result)
        else:
            wrong = process.in_child(lambda: schedd.spool(result), bar.set)
            if wrong:
                raise named(wrong, pool.place)
        folder = str(pool.query(f"ClusterId == {cluster}", ["Iwd"])[0]["Iwd"])
    except (VmjobError, IndexError) as broken:
        remove(pool, [cluster])
        if isinstance(broken, IndexError):
            raise _gone(pool, cluster) from broken
        raise TransferFailed(f"the files could not be sent: {broken}",
                             "try again; if it stays, ask the site whether its schedd has space for them") from broken
    except BaseException:
        remove(pool, [cluster])
        raise
    return Carrier(cluster, folder)


def _gone(pool: Pool, cluster: int) -> PoolError:
    return PoolError(f"{pool.place}: the job {cluster} has left the queue",
                     "somebody removed it, or the site's policy did: ask there")


def _carried_on(pool: Pool, target: Target, carrier: Carrier, reporter: Reporter) -> Carrier:
    """Wait until the VO's schedd has brought it to the compute element."""
    reporter.note(f"waiting until {pool.place} has brought it to {target.element}")
    ad = _until(pool, carrier.cluster, lambda ad: bool(_remote_id(ad)) and ad.get("GridJobStatus") is not None,
                "carried on to the compute element")
    return Carrier(carrier.cluster, carrier.folder, _remote_id(ad))


def _remote_id(ad: Any) -> str:
    """CLUSTER.PROC at the end of ``condor SCHEDD COLLECTOR CLUSTER.PROC``."""
    found = re.fullmatch(r"condor \S+ \S+ ([0-9]+\.[0-9]+)", str(ad.get("GridJobId", "")))
    return found[1] if found else ""


def _until(pool: Pool, cluster: int, done: Callable[[Any], bool], what: str) -> Any:
    deadline, pause = time.monotonic() + _STAGE_IN, 0.1
    while time.monotonic() < deadline:
        ads = pool.query(f"ClusterId == {cluster}", ["StageInFinish", "GridJobId", "GridJobStatus", "JobStatus",
                                                     "HoldReason", "HoldReasonCode", "GridResource",
                                                     "GridResourceUnavailableTime"])
        if not ads:
            raise _gone(pool, cluster)
        if done(ads[0]):
            return ads[0]
        if ads[0].get("JobStatus") == 5 and ads[0].get("HoldReasonCode") not in (None, 16):
            raise TransferFailed(f"the files could not be {what}: {ads[0].get('HoldReason')}",
                                 "the reason comes from HTCondor; if it is about authentication, the schedd needs a "
                                 "token that the compute element accepts")
        lost = number(ads[0], "GridResourceUnavailableTime")
        if lost and time.time() - lost > _UNREACHED:
            raise PoolUnreachable(f"{pool.place} cannot reach the compute element: {ads[0].get('GridResource')}",
                                  "check the target's url (a CE's schedd has its host's name, else add it: "
                                  "condor-ce://HOST/SCHEDD), and that this schedd has a token for it")
        time.sleep(pause)
        pause = min(2.0, pause * 1.5)
    raise TransferFailed(f"the files were not {what} within {_STAGE_IN // 60} minutes", "try again, or ask the site")


def remove(pool: Pool, clusters: Sequence[int], why: str = "removed by vmjob") -> None:
    """Remove carriers, and those of tokens with their payload's; their files go with them. One that is gone already is
    fine."""
    import htcondor2

    if clusters:
        which = " || ".join(f'ClusterId == {one} || VmjobHolds == "token" && VmjobWhat == "{one}"' for one in clusters)
        ours, schedd = pool.ours, pool.schedd
        with translated(pool.place):
            schedd.act(htcondor2.JobAction.Remove, f"{ours} && ({which})", why)


def bring(pool: Pool, payload: str, names: Sequence[str], folder: Path) -> None:
    """Copy files of the payload's folder at the schedd into ``folder``. Raises TransferFailed where one is missing."""
    cluster = of_payload(payload)
    if cluster is None:
        raise PoolError(f"{pool.place}: the jobs' folder {payload!r} is none that vmjob made",
                        "fetch it with HTCondor's own tools")
    for start in range(0, len(names), _GROUP):
        group = names[start:start + _GROUP]
        with _alone(pool, cluster):
            for pause in (0.5, 1.5, 4.0, None):
                wrong = _retrieve(pool, cluster, group, folder)
                if not wrong:
                    break
                if pause is None:
                    raise TransferFailed(f"the results could not be fetched from {pool.place}: {wrong}",
                                         "try again; jobs that are still there keep their results")
                time.sleep(pause * (1 + random.random()))


def _retrieve(pool: Pool, cluster: int, names: Sequence[str], folder: Path) -> str:
    """What was wrong, empty if nothing. What a spooled job's owner is sent, and where to, stands in its ad: so of two
    who ask at once from two machines one may get nothing, and asks again."""
    import htcondor2

    job = f"{cluster}.0"
    try:
        pool.schedd.edit(job, "TransferOutput", quote(",".join(names)))
        pool.schedd.edit(job, "SUBMIT_Iwd", quote(str(folder)))
        pool.schedd.retrieve(job)
    except htcondor2.HTCondorException as complaint:
        return " ".join(str(complaint).split())[:300]
    missing = [name for name in names if not (folder / name).is_file()]
    return f"{missing[0]} did not come" if missing else ""


@contextmanager
def _alone(pool: Pool, cluster: int) -> Iterator[None]:
    """One process of this machine at a time asks for files of a carrier."""
    folder = config.cache_dir() / "fetch"
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{pool.name}-{cluster}")
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder / name, config.stage_timeout()))
        except TimeoutError as busy:
            raise TransferFailed(f"{folder / name}: {busy.strerror}", "end that process, or let it go on") from busy
        yield


def orphans(pool: Pool) -> list[int]:
    """Payload carriers of submissions that are gone (ten minutes after their files came; an hour more where the tokens
    go on from there before the jobs come), or that never got theirs; and those of tokens without a payload."""
    carriers = pool.query('VmjobHolds == "payload" || VmjobHolds == "token"',
                          ["ClusterId", "Iwd", "QDate", "StageInFinish", "VmjobHolds", "VmjobWhat"])
    if not carriers:
        return []
    payloads = [ad for ad in carriers if ad["VmjobHolds"] == "payload"]
    there = {str(ad["ClusterId"]) for ad in payloads}
    users = pool.query("VmjobPayload =!= undefined", ["VmjobPayload"], clusters=True)
    used = {str(ad.get("VmjobPayload")) for ad in users}
    now = time.time()
    grid = {str(ad.get("VmjobWhat")) for ad in carriers if ad["VmjobHolds"] == "token"}
    found = [int(ad["ClusterId"]) for ad in carriers
             if ad["VmjobHolds"] == "token" and str(ad.get("VmjobWhat")) not in there]
    for ad in payloads:
        whole = number(ad, "StageInFinish")
        left = _LEFT + (_STAGE_IN if str(ad["ClusterId"]) in grid else 0)
        old = now - whole > left if whole else now - number(ad, "QDate") > _DAY
        if old and str(ad["Iwd"]) not in used:
            found.append(int(ad["ClusterId"]))
    return found


def of_payload(payload: str) -> Optional[int]:
    """The carrier's cluster, by its folder."""
    found = re.search(r"/cluster([0-9]+)\.proc0\.subproc0/?$", payload)
    return int(found[1]) if found else None
