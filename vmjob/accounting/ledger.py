"""What usage records add up to: read from the ledger of a spool, summed by VO, image, user and day."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob.accounting.record import UsageRecord, from_json
from vmjob.accounting.spool import LEDGER, document, reading
from vmjob.core.errors import JobError, VmjobError

KEYS = ("vo", "image", "user", "day", "site", "machine", "accelerator", "outcome")


@dataclass(frozen=True)
class Sum:
    """Of the runs with these values of the keys asked for. ``occupied``: CPUs × wall. Seconds, bytes."""

    by: tuple[str, ...]
    runs: int = 0
    failed: int = 0
    wall: float = 0.0
    suspended: float = 0.0
    cpu: float = 0.0
    occupied: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, one: UsageRecord) -> Sum:
        return Sum(self.by, self.runs + 1, self.failed + (one.outcome in ("failed", "killed")), self.wall + one.wall,
                   self.suspended + one.suspended, self.cpu + one.cpu, self.occupied + one.wall * one.cpus,
                   self.bytes_in + (one.bytes_in or 0), self.bytes_out + (one.bytes_out or 0))


def value(record: UsageRecord, key: str) -> str:
    """What a record is summed under. ``day`` is that of its end, in UTC, so that every sum is of whole records;
    ``image``: its name, and the beginning of its digest, as names are not unique."""
    if key == "day":
        return time.strftime("%Y-%m-%d", time.gmtime(record.ended))
    if key == "user":
        return record.global_user or record.user
    if key == "image":
        return f"{record.image} {record.image_digest.partition(':')[2][:8]}".strip()
    return str(getattr(record, key))


def sums(records: Iterable[UsageRecord], by: Sequence[str]) -> list[Sum]:
    """Sorted by their keys (see KEYS)."""
    found: dict[tuple[str, ...], Sum] = {}
    for one in records:
        key = tuple(value(one, word) for word in by)
        found[key] = found.get(key, Sum(key)).plus(one)
    return [found[key] for key in sorted(found)]


def names(spool: Path) -> list[Path]:
    """The pages of a ledger. Raises JobError where there is none, or where it may not be read."""
    try:
        return sorted((spool / LEDGER).iterdir())
    except OSError as refused:
        raise JobError(f"{spool / LEDGER}: {refused.strerror}",
                       "--spool names what accounting.spool does in site.yaml; its group may read it") from refused


def read(pages: Iterable[Path]) -> Iterator[tuple[Path, Optional[UsageRecord], str]]:
    """Each page with its record, or why it does not count; no run is counted twice."""
    seen = set()
    for path in pages:
        try:
            record = page(path)
        except OSError as refused:
            yield path, None, refused.strerror or str(refused)
            continue
        except VmjobError as wrong:
            yield path, None, wrong.message
            continue
        if (record.uid, record.uuid) in seen:
            yield path, None, "its run has a page already"
            continue
        seen.add((record.uid, record.uuid))
        yield path, record, ""


def page(path: Path) -> UsageRecord:
    """The record in a page of a ledger. It counts if the page belongs to the user whose run it is of, to root, or to
    whoever reads: nobody makes usage of somebody else. Raises OSError, JobError."""
    with reading(path) as handle:
        owner = os.fstat(handle).st_uid
        record = from_json(document(handle, "page"), "page", JobError)
    if owner not in (record.uid, 0, os.geteuid()):
        raise JobError(f"it belongs to uid {owner}, and tells of a run of uid {record.uid}")
    return record
