"""Usage records: what a run used and for whom, as APEL, Gratia and programs read it. Pure; where records are kept is
the matter of accounting.spool, where they come from that of run.recording.

Times are seconds, moments seconds since 1970, sizes bytes; the formats' own units are made here and nowhere else.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

from vmjob.core import codec
from vmjob.core.errors import VmjobError
from vmjob.core.units import GIB, MIB

RUNNING, KILLED = "running", "killed"  # outcomes beside those of a Result
FORMATS = {"apel-cloud": ".apel", "gratia": ".xml", "json": ".json"}  # and how their files' names end
TEXT = 255  # characters of one value: what APEL's columns hold
UR = "http://www.gridforum.org/2003/ur-wg"


@dataclass(frozen=True)
class UsageRecord:
    """One run. ``wall``: from start to end, ``suspended``: how much of that its guest stood still. ``cpu``: of QEMU,
    user and system. ``bytes_in``, ``bytes_out``: frames to and from the guest's card, None where nobody counted;
    ``counted_by`` says who did. ``user``, ``group``, ``uid``: by the kernel; ``global_user`` (a DN, or ISSUER SUBJECT
    of a token), ``fqan`` and ``vo`` by ``said_by``, ``vouched`` where the first is no word of the user's own.
    ``account``: what the batch system charges. ``ce_job``: the job's name at the compute element, ``job_id`` in the
    batch system ``batch``. ``outcome``: that of result.json, or killed: nobody lived to tell the end, and the numbers
    are those of the last sign of life. Empty and None: not known."""

    uuid: str
    site: str
    machine: str
    user: str
    uid: int
    group: str
    started: float
    wall: float = 0.0
    suspended: float = 0.0
    cpu: float = 0.0
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    network: str = ""
    bytes_in: Optional[int] = None
    bytes_out: Optional[int] = None
    counted_by: str = ""
    image: str = ""
    image_digest: str = ""
    accelerator: str = ""
    job: str = ""
    job_id: str = ""
    batch: str = ""
    ce_job: str = ""
    global_user: str = ""
    fqan: str = ""
    vo: str = ""
    said_by: str = ""
    vouched: bool = False
    account: str = ""
    service: str = ""
    benchmark: str = ""
    benchmark_value: float = 0.0
    outcome: str = RUNNING
    status: Optional[int] = None
    failure: str = ""
    version: str = ""

    @property
    def ended(self) -> float:
        """By the length of the run, so that a clock which was set meanwhile makes no usage."""
        return self.started + self.wall


def clean(text: str) -> str:
    """One line of at most TEXT characters, whatever a user called herself, her job or her image."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:TEXT])


def render(record: UsageRecord, kind: str) -> bytes:
    """The record in one of FORMATS, as a file of its own."""
    if kind == "json":
        return (json.dumps(to_json(record), ensure_ascii=False, indent=1) + "\n").encode()
    return (usage_record_xml(record) if kind == "gratia" else apel_cloud(record)).encode()


# ---------------------------------------------------------------- APEL (EGI Cloud Accounting, version 0.4)


def apel_cloud(*records: UsageRecord) -> str:
    """A message of the APEL cloud usage record 0.4: memory in MiB, disk and network in GiB, times in whole seconds.
    WallDuration is what was used, so it and SuspendDuration make EndTime - StartTime. What is not known is left out."""
    return "APEL-cloud-message: v0.4\n" + "".join(
        "".join(f"{key}: {_ascii(value)}\n" for key, value in _apel(one) if value not in ("", None)) + "%%\n"
        for one in records)


def _apel(one: UsageRecord) -> Iterator[tuple[str, Any]]:
    start, end, idle = round(one.started), round(one.ended), round(one.suspended)
    yield "RecordCreateTime", end
    yield "VMUUID", one.uuid
    yield "SiteName", one.site
    yield "CloudComputeService", one.service
    yield "MachineName", f"vmjob-{one.uuid}"
    yield "LocalUserId", one.user
    yield "LocalGroupId", one.group
    yield "GlobalUserName", one.global_user
    yield "FQAN", one.fqan or (one.vo and f"/{one.vo}")
    yield "Status", "completed"
    yield "StartTime", start
    yield "EndTime", end
    yield "SuspendDuration", idle
    yield "WallDuration", max(0, end - start - idle)
    yield "CpuDuration", round(one.cpu)
    yield "CpuCount", one.cpus
    yield "NetworkType", one.network
    yield "NetworkInbound", None if one.bytes_in is None else round(one.bytes_in / GIB)
    yield "NetworkOutbound", None if one.bytes_out is None else round(one.bytes_out / GIB)
    yield "PublicIPCount", 0
    yield "Memory", round(one.memory / MIB)
    yield "Disk", math.ceil(one.disk / GIB)
    yield "BenchmarkType", one.benchmark
    yield "Benchmark", f"{one.benchmark_value:g}" if one.benchmark else None
    yield "ImageId", one.image_digest or one.image
    yield "CloudType", f"vmjob/{one.version}" + (f" (QEMU, {one.accelerator})" if one.accelerator else "")


def _ascii(value: Any) -> str:
    """A value in one line without what ends a record (APEL's loader splits at every ``%%``)."""
    text = clean(str(value)).replace("%%", "% %").replace("%%", "% %")
    return text.encode("ascii", "backslashreplace").decode()[:TEXT]


# ---------------------------------------------------------------- Usage Record 1.0 (GFD.98) with Gratia's additions


def usage_record_xml(one: UsageRecord) -> str:
    """A JobUsageRecord as Gratia's probes write it: elements in the order of GFD.98, durations of ISO 8601, memory in
    KB, disk in MB and network in bytes. WallDuration is the whole time; TimeDuration: how much of it was suspended."""
    from xml.etree import ElementTree

    root = ElementTree.Element("JobUsageRecord", {"xmlns": UR, "xmlns:urwg": UR})

    def add(name: str, value: Any, parent: ElementTree.Element = root, **more: str) -> ElementTree.Element:
        made = ElementTree.SubElement(parent, name, {f"urwg:{key}": clean(text) for key, text in more.items()})
        made.text = None if value is None else clean(str(value))
        return made

    add("RecordIdentity", None, recordId=f"{one.machine}:{one.uuid}", createTime=_moment(one.ended))
    jobs = add("JobIdentity", None)
    add("GlobalJobId", one.ce_job or f"vmjob:{one.uuid}", jobs)
    add("LocalJobId", one.job_id or one.uuid, jobs)
    who = add("UserIdentity", None)
    for name, value in (("LocalUserId", one.user), ("GlobalUsername", one.global_user or one.user),
                        ("VOName", one.fqan or one.vo), ("ReportableVOName", one.vo),
                        ("DN", one.global_user if one.global_user.startswith("/") else "")):
        if value:
            add(name, value, who)
    add("JobName", one.job)
    add("Status", 1 if one.status is None else one.status, description=one.failure or one.outcome)
    add("Memory", one.memory // 1024, storageUnit="KB", metric="total")
    add("Disk", math.ceil(one.disk / MIB), storageUnit="MB", metric="total")
    for way, amount in (("in", one.bytes_in), ("out", one.bytes_out)):
        if amount is not None:
            add("Network", amount, storageUnit="B", metric="total", description=way)
    add("TimeDuration", _duration(one.suspended), type="suspended")
    add("WallDuration", _duration(one.wall))
    add("CpuDuration", _duration(one.cpu), usageType="user", description="QEMU, user and system")
    add("EndTime", _moment(one.ended))
    add("StartTime", _moment(one.started))
    add("MachineName", one.machine)
    add("Host", one.machine, primary="true")
    if one.account:
        add("ProjectName", one.account)
    add("Processors", one.cpus, metric="total")
    for name, value in (("ResourceType", "Batch"), ("ImageName", one.image), ("ImageId", one.image_digest),
                        ("Accelerator", one.accelerator)):
        if value:
            add("Resource", value, description=name)
    add("ProbeName", one.service or f"vmjob:{one.machine}")
    add("SiteName", one.site)
    add("Grid", "OSG")
    add("Njobs", 1)
    ElementTree.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(round(seconds)))


def _duration(seconds: float) -> str:
    """``93784.5 -> 'P1DT2H3M4.5S'``."""
    tenths = round(max(0.0, seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "") + f"{rest / 10:g}S"
    return f"P{f'{days}D' if days else ''}T{parts}"


# ---------------------------------------------------------------- JSON (usage.schema.json)


def to_json(record: UsageRecord) -> dict[str, Any]:
    """The document of usage.schema.json: the fields of UsageRecord, and ``ended``."""
    body = {key: clean(value) if isinstance(value, str) else round(value, 3) if isinstance(value, float) else value
            for key, value in codec.write(record).items()}
    return {"schema": 1, **body, "ended": round(record.ended, 3)}


def from_json(document: Any, where: str, error: type[VmjobError]) -> UsageRecord:
    """Back from what ``to_json`` made, checked. Raises ``error`` naming ``where`` and the key."""
    from vmjob.core.schema import check

    return codec.read(UsageRecord, check(document, "usage", where, error), where, error=error)


def changes(before: UsageRecord, now: UsageRecord, most: int) -> bytes:
    """What is another than before, as JSON of at most ``most`` bytes. Of what is too long the longest texts are left
    out, so that what stood before counts: half a document would be none, half a name somebody else's. Pure."""
    old = codec.write(before)
    changed = {key: value for key, value in codec.write(now).items() if value != old[key]}
    while len(body := json.dumps(changed).encode()) > most:
        texts = {key: len(json.dumps(value)) for key, value in changed.items() if isinstance(value, str)}
        changed.pop(max(texts, key=lambda key: texts[key]))
    return body
