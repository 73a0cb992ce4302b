"""What makes a guest a worker of an HTCondor pool: HTCondor's configuration for it, and what came of it, read from the
logs that it returned. The guest's part is glidein.sh."""

from __future__ import annotations

import os
import pkgutil
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Optional

from vmjob.core import classads
from vmjob.core.errors import (
    ClockWrong,
    CondorFailed,
    CondorMissing,
    CondorTooOld,
    JobError,
    PoolOutOfReach,
    TokenRefused,
    VmjobError,
)
from vmjob.core.glideins import FOLDER, SYSTEM_DISK, Glidein, Literal, Times, Worked, reserved_memory, times, with_port
from vmjob.core.model import Granted, Job, Slot
from vmjob.core.tokens import claims_of
from vmjob.guest.channel import clean

HISTORY = "startd_history"
WHY = "why"
_FOREVER = 10 * 365 * 24 * 3600  # seconds
_MOST = 512 * 2**20  # bytes that are read of a guest's log
_LINE = 2**16  # bytes
_CUT = "STARTER_DISCONNECTED_FROM_SUBMIT_NODE"
# settings that would change the machine, and words of the language
_LANGUAGE = {"if", "else", "elif", "endif", "use", "include", "error", "warning", "memory", "disk",
             "slot1_user", "polling_interval", "release_dir", "local_config_file"}
_KEPT = ("CpusProvisioned", "JobDuration", "ToE", _CUT)

# Exit statuses of glidein.sh, and what to do.
_FAILURES: dict[int, tuple[type[VmjobError], str]] = {
    11: (CondorMissing, "build HTCondor into the image (see examples/glidein), or send a tarball: glidein.condor"),
    12: (CondorTooOld, "build the image with a newer HTCondor, or send a tarball: glidein.condor"),
    14: (PoolOutOfReach, "check the pool's name and port, and whether the site lets its nodes reach it"),
    15: (TokenRefused, "make a token in this pool that may advertise worker nodes: condor_token_create -authz "
                       "ADVERTISE_STARTD -authz ADVERTISE_MASTER"),
    13: (ClockWrong, "set the node's clock (timedatectl); another node may do"),
}


def program(job: Job, token: str, granted: Granted, slot: Slot, name: str, left: Optional[float],
            now: int) -> tuple[Job, dict[str, str]]:
    """The job that the agent runs, and its further files (for script.control_lines). ``name``: of the guest; ``left``:
    seconds until the end of the slot, None: no limit; ``now``: epoch seconds. Raises WalltimeTooShort."""
    assert job.glidein
    when = times(job.glidein, left)
    # the jobs' share of the slot's disk: beside what was asked for them there is room for the guest itself
    disk = job.resources.disk or max(0, granted.disk - SYSTEM_DISK)
    claims = claims_of(token)
    variables = {"NAME": name, "JOBS": str(job.glidein.slots(granted.cpus)), "DISK": str(disk // 2**20),
                 "POOL": with_port(job.glidein.pool), "CONDOR": job.glidein.condor,
                 "RETIRE": str(now + when.retire if when.retire is not None else 0),
                 "EXPIRES": str(int(claims.expires)) if claims and claims.expires else ""}
    environment = {**dict(job.environment), **{f"VMJOB_GLIDEIN_{key}": value for key, value in variables.items()}}
    files = {"condor_config": configuration(job.glidein, granted.cpus, slot, name, when, now), "token": token + "\n"}
    return replace(job, script=_text("glidein.sh"), environment=tuple(sorted(environment.items()))), files


def configuration(glidein: Glidein, cpus: int, slot: Slot, name: str, when: Times, now: int) -> str:
    """HTCondor's configuration in the guest: what differs from one glide-in to the next, and then glidein.config."""
    site = glidein.site or socket.gethostname()
    attributes: dict[str, Literal] = {
        "GLIDEIN_Site": site, "GLIDEIN_ResourceName": glidein.resource or site, "IS_GLIDEIN": True,
        "VmjobGuest": name, "VmjobSlot": slot.job_id}
    # without an end: far away, so that expressions need no case of their own
    attributes.update(GLIDEIN_ToRetire=now + (_FOREVER if when.retire is None else when.retire),
                      GLIDEIN_ToDie=now + (_FOREVER if when.die is None else when.die))
    attributes.update(glidein.attributes)
    jobs = glidein.slots(cpus)
    lines = {"VMJOB_NAME": name, "NUM_CPUS": str(jobs), "RESERVED_MEMORY": str(reserved_memory(jobs)),
             "VMJOB_IDLE": str(glidein.idle), "VMJOB_START": f"({glidein.start or 'True'})",
             **{key: classads.literal(value).replace("$", "$(DOLLAR)") for key, value in attributes.items()},
             "STARTD_ATTRS": "$(STARTD_ATTRS) " + " ".join(attributes)}
    return "".join(f"{key} = {value}\n" for key, value in lines.items()) + "\n" + _text("glidein.config")


def check_attributes(glidein: Glidein) -> None:
    """In HTCondor's configuration attributes are settings like others: those that this configuration needs for itself
    are refused. Raises JobError."""
    text = configuration(replace(glidein, attributes=()), 1, Slot("", Path(), 1, 0, 0), "", Times(), 0)
    ours = {line.partition("=")[0].strip().lower() for line in text.split("\n") if "=" in line and line[0] != "#"}
    for name, _ in glidein.attributes:
        if name.lower() in ours | _LANGUAGE or name.lower().startswith("vmjob_"):
            raise JobError(f"glidein.attributes: {name} is a setting of HTCondor's in the guest", "choose another name")


def _text(name: str) -> str:
    data = pkgutil.get_data("vmjob", f"guest/{name}")  # from a zip file as well
    assert data is not None
    return data.decode("utf-8")


# ---------------------------------------------------------------- what came of it


def failure(status: int, folder: Optional[Path]) -> VmjobError:
    """The failure that glidein.sh ended with; ``folder`` holds what it returned, if that was kept."""
    kind, hint = _FAILURES.get(status, (CondorFailed, f"see the logs in {folder or FOLDER}, MasterLog first"))
    text = clean(next(_lines(folder / WHY), "").strip().encode()[:500]) if folder else ""
    return kind(f"the glide-in: {text or f'it ended with status {status}'}", hint)


def worked(name: str, folder: Path) -> Worked:
    """What the guest ``name`` has done, from HTCondor's own record of jobs among its logs. A guest can write there what
    it likes: the numbers are its word."""
    jobs = evicted = 0
    busy = 0.0
    for ad in _ads(folder / HISTORY):
        busy += max(_number(ad, "JobDuration"), 0.0) * max(_number(ad, "CpusProvisioned"), 1.0)
        # "of its own accord", and the submit side has heard of it
        if "HowCode = 0;" in ad.get("ToE", "") and _CUT not in ad:
            jobs += 1
        else:
            evicted += 1
    told = re.fullmatch(r"([0-9]{1,11}) ([0-9]{1,11})\s*", next(_lines(folder / "times"), ""), re.ASCII)
    seconds = float(told[2]) - float(told[1]) if told else 0.0
    return Worked(name, jobs, evicted, round(busy, 3), max(0.0, seconds))


def _ads(path: Path) -> Iterator[dict[str, str]]:
    """A history file's ads, of each what is of use here: lines ``Name = value``, after each ad one that begins with
    ``***``."""
    ad: dict[str, str] = {}
    for line in _lines(path):
        if line.startswith("***"):
            yield ad
            ad = {}
        else:
            key, _, value = line.partition(" = ")
            if key in _KEPT:
                ad[key] = value


def _number(ad: dict[str, str], key: str) -> float:
    found = re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", ad.get(key, ""))
    return float(found[0]) if found else 0.0


def _lines(path: Path) -> Iterator[str]:
    """What a guest wrote, which may be a link or endless; nothing where there is no plain file."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return
            while file.tell() < _MOST and (line := file.readline(_LINE)):
                yield line.decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return
