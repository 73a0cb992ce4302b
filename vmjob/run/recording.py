"""Each run writes a usage record, where the site's configuration wants one (``accounting`` in /etc/vmjob/site.yaml).

A node whose accounting is broken runs no job that nobody would know of: what cannot begin a record fails at once,
before anything is read or booted, as transient. Where there is no configuration nothing is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from vmjob.core.errors import VmjobError
from vmjob.run.state import Run

if TYPE_CHECKING:
    from vmjob.accounting.record import UsageRecord
    from vmjob.accounting.spool import Entry
    from vmjob.ads.site_yaml import Site

log = logging.getLogger("vmjob.accounting")

SITE = "/etc/vmjob/site.yaml"  # as ads.site_yaml.SITE_CONFIG, whose import alone takes 7 ms
BEAT = 30.0  # seconds: what a run that is killed loses of its record, at most
_TICK = 1.0
_FROZEN = 3.0  # a tick that takes so much longer: somebody made us stand still, and QEMU with us


@contextmanager
def recorded(this: Run) -> Iterator[None]:
    """Write the usage record of ``this``, whatever becomes of it; before, those that dead runs of this user left.
    Raises RecordSpoolFull."""
    site = _site()
    if site is None or site.accounting is None:
        yield
        return
    from vmjob.accounting import spool

    place = site.accounting.spool
    spool.sweep(place)
    entry = spool.begin(place, _begun(this, site), site.accounting.format)
    this.accounted = True
    pulse = _Pulse(this, entry)
    pulse.start()
    try:
        yield
    finally:
        pulse.end()
        try:
            entry.end(_ended(this, pulse.now()))
        except OSError as refused:
            log.error("the usage record %s stays in %s until vmjob account sweep: %s", entry.record.uuid, entry.folder,
                      refused)
        entry.close()


def _site() -> Optional[Site]:
    """The site's configuration, if there is one. Raises RecordSpoolFull where it is broken."""
    if not os.environ.get("VMJOB_SITE_CONFIG"):
        try:
            os.lstat(SITE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            pass  # whoever reads it then says what is wrong
    from vmjob.ads.site_yaml import find, load
    from vmjob.core.site_errors import RecordSpoolFull, SiteBroken

    path = find()
    try:
        return load(path) if path else None
    except SiteBroken as broken:
        raise RecordSpoolFull(f"no job runs here unaccounted, and {broken.message}",
                              broken.hint or "the site's admin fixes it; another node may do") from broken


# ---------------------------------------------------------------- the record


def _begun(this: Run, site: Site) -> UsageRecord:
    """What is known before anything was done."""
    from uuid import uuid4

    from vmjob.accounting.payer import payer
    from vmjob.accounting.record import UsageRecord, clean
    from vmjob.core.accounts import group_name, user_name
    from vmjob.core.version import __version__

    assert site.accounting
    group, paid = group_name(os.getgid()), payer(os.environ)
    if not paid.vo and group in site.vos:  # pool accounts: atlas001 in the group atlas
        paid = replace(paid, vo=group, said_by=_also(paid.said_by, "the local group"))
    manifest, job, slot = this.payload.manifest, this.payload.job, this.slot
    words: Any = {key: clean(text) if isinstance(text, str) else text for key, text in vars(paid).items()}
    return UsageRecord(
        str(uuid4()), site.name, clean(socket.gethostname()), clean(user_name(os.getuid())), os.getuid(), clean(group),
        round(this.started, 3), network=job.network.value, image=clean(manifest.name), image_digest=manifest.digest,
        job=clean(job.name), job_id=clean(slot.job_id), batch=slot.kind, service=site.accounting.service,
        benchmark=site.accounting.benchmark[0], benchmark_value=site.accounting.benchmark[1],
        version=__version__, **words)


def _so_far(begun: UsageRecord, this: Run, suspended: float) -> UsageRecord:
    """What has come to be known since; from any thread."""
    granted = this.granted
    traffic = list(this.traffic)
    came = [one.received for one in traffic if one.received is not None]
    went = [one.sent for one in traffic if one.sent is not None]
    disk = this.payload.manifest.virtual_size + (granted.disk if granted and this.job.outputs else 0)
    found = replace(
        begun, wall=time.monotonic() - this.clock, suspended=suspended,
        cpu=this.cpu.now(), cpus=granted.cpus if granted else 0,
        memory=granted.memory if granted else 0, disk=disk, accelerator=this.accel.name if this.accel else "",
        bytes_in=sum(came) if len(came) == len(traffic) else None,
        bytes_out=sum(went) if len(went) == len(traffic) else None,
        counted_by="QEMU and vmjob, on the node" if traffic and len(came) == len(traffic) else "")
    if this.vos and not (begun.vo and begun.vouched):  # the site knows better than a user's proxy
        vo = this.vos[0].value
        found = replace(found, vo=vo, fqan=begun.fqan if begun.vo == vo else "",
                        said_by=_also(begun.said_by, f"the site's policy ({this.vos[0].said_by})"))
    return found


def _also(said_by: str, more: str) -> str:
    return f"{said_by}; the VO: {more}"[:255] if said_by else more[:255]


def _ended(this: Run, last: UsageRecord) -> UsageRecord:
    result = this.result()
    return replace(last, outcome=result.outcome, status=result.status, failure=result.failure_kind)


# ---------------------------------------------------------------- the pulse


class _Pulse(threading.Thread):
    """Counts how long the run stood still, and beats."""

    def __init__(self, this: Run, entry: Entry) -> None:
        super().__init__(name="accounting", daemon=True)
        self._this, self._entry = this, entry
        self._over = threading.Event()
        self.suspended = 0.0

    def now(self) -> UsageRecord:
        return _so_far(self._entry.record, self._this, self.suspended)

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)  # they are the main thread's
        before, due = time.monotonic(), 0.0
        while not self._over.wait(_TICK):
            before = self._count(before)
            if before >= due:
                due = before + BEAT
                self._beat()
        self._count(before)

    def _count(self, before: float) -> float:
        """The time since ``before`` as suspended, if it was; now."""
        now = time.monotonic()
        if now - before > _TICK + _FROZEN:
            self.suspended += now - before - _TICK
        elif self._this.paused:
            self.suspended += now - before
        return now

    def _beat(self) -> None:
        with suppress(OSError, VmjobError):  # the next one may do; the end says what is wrong
            self._entry.beat(self.now())

    def end(self) -> None:
        self._over.set()
        self.join()
