"""What each batch system, the kernel and the machine say about a slot: one small function each.

Every reader gets the environment and a root folder to read files below (``/``, or a made-up one in
tests) and returns what it found, or None when it does not apply here. Nonsense is ignored with a
warning: a slot must not fail over a file that somebody else wrote.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from vmjob import classads
from vmjob.machinetext import decimal, is_number, lines
from vmjob.machinetext import number as whole_number

log = logging.getLogger("vmjob.slot")

KIB, MIB = 2**10, 2**20
_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"
_YEAR_2000 = 946684800
_FOREVER = 10 * 365 * 86400


@dataclass(frozen=True)
class Limits:
    """What one source says; bytes, seconds from now. None: it does not say."""

    source: str
    cpus: Optional[int] = None
    memory: Optional[int] = None
    disk: Optional[int] = None
    time_left: Optional[int] = None
    scratch: Optional[Path] = None
    job_id: str = ""
    batch: bool = False


def below(root: Path, path: str) -> Path:
    """An absolute path of the machine as it is under ``root``."""
    return root / path.lstrip("/")


def number(text: Optional[str], name: str, least: float = 1, most: float = 2**62, unit: float = 1) -> Optional[int]:
    """A number somebody else wrote, times ``unit``; None, with a warning, when it is not one or not sane."""
    if text is None or not text.strip():
        return None
    try:
        value = decimal(text)
        if not math.isfinite(value):
            raise ValueError
    except (ValueError, OverflowError):
        log.warning("%s is %.60r, which is no number: ignored", name, text)
        return None
    if not least <= value * unit <= most:
        log.warning("%s is %.60r, which cannot be: ignored", name, text)
        return None
    return int(value * unit)


def cpus(text: Optional[str], name: str) -> Optional[int]:
    return number(text, name, 1, 65536)


def memory(text: Optional[str], name: str, unit: int = 1) -> Optional[int]:
    return number(text, name, MIB, 2**53, unit)


def seconds_until(text: Optional[str], name: str, now: float) -> Optional[int]:
    """Seconds from now to a moment in epoch seconds; a moment that has passed is 0."""
    moment = number(text, name, _YEAR_2000, _YEAR_2000 + 20 * _FOREVER)
    return None if moment is None else max(0, int(moment - now))


def first(environ: Mapping[str, str], *names: str) -> tuple[Optional[str], str]:
    """The first of these variables that is set, and its name."""
    return next(((environ[name], name) for name in names if environ.get(name)), (None, names[0]))


def least(values: Iterable[Optional[int]]) -> Optional[int]:
    return min((value for value in values if value is not None), default=None)


def read(path: Path, most: int = 2**20) -> Optional[str]:
    try:
        with path.open("rb") as file:
            return file.read(most).decode(errors="replace")
    except (OSError, ValueError):
        return None


def folder(root: Path, path: Optional[str], name: str) -> Optional[Path]:
    """A scratch folder that is there and may be written."""
    if not path:
        return None
    place = below(root, path)
    with suppress(OSError):  # of a name that is too long
        if path.startswith("/") and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    log.warning("%s is %.200r, which is no folder to write in: ignored", name, path)
    return None


# ---------------------------------------------------------------- batch systems


classad = classads.read


def ad(environ: Mapping[str, str], root: Path, variable: str) -> dict[str, str]:
    """The ad in the file that ``variable`` names; empty where there is none."""
    path = environ.get(variable, "")
    text = read(below(root, path), classads.LARGEST + 1) if path else ""
    try:
        if text is None:
            raise ValueError("it cannot be read")
        return classad(text)
    except ValueError as refused:
        log.warning("%s names %s, which is ignored: %s", variable, path, refused)
        return {}


def htcondor(environ: Mapping[str, str], root: Path, now: float) -> Optional[Limits]:
    """Limits of the machine ad; time from the job ad's Allowed*Duration."""
    if not (environ.get("_CONDOR_MACHINE_AD") or environ.get("_CONDOR_SCRATCH_DIR")):
        return None
    machine, job = ad(environ, root, "_CONDOR_MACHINE_AD"), ad(environ, root, "_CONDOR_JOB_AD")

    def whole(told: dict[str, str], key: str) -> Optional[str]:
        value = told.get(key)  # an expression says nothing to us, and is no nonsense either
        return value if value is not None and re.match(r"-?[0-9.eE+]+\Z", value) else None

    start = number(whole(job, "jobcurrentstartdate"), "JobCurrentStartDate", _YEAR_2000)
    times = [number(whole(job, key), key, 1, _FOREVER) for key in ("allowedjobduration", "allowedexecuteduration")]
    lasting = least(times)
    gone = now - start if start is not None else 0
    ids = [job[key] for key in ("clusterid", "procid") if is_number(job.get(key, ""))]
    return Limits("htcondor", batch=True, job_id=".".join(ids),
                  cpus=cpus(whole(machine, "cpus"), "Cpus of the machine ad"),
                  memory=memory(whole(machine, "memory"), "Memory of the machine ad", MIB),
                  disk=number(whole(machine, "disk"), "Disk of the machine ad", KIB, 2**60, KIB),
                  time_left=None if lasting is None else max(0, int(lasting - gone)),
                  scratch=folder(root, environ.get("_CONDOR_SCRATCH_DIR"), "_CONDOR_SCRATCH_DIR"))


def slurm(environ: Mapping[str, str], root: Path, now: float) -> Optional[Limits]:
    """Limits from the variables of sbatch and srun; memory there is in MiB, 0 meaning all of the node."""
    if not environ.get("SLURM_JOB_ID"):
        return None
    ours = cpus(*first(environ, "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"))
    amounts = []
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", ours or 1)):
        if environ.get(name, "0") != "0":
            amounts.append(memory(environ[name], name, MIB * times))
    return Limits("slurm", batch=True, job_id=environ["SLURM_JOB_ID"][:64], cpus=ours, memory=least(amounts),
                  time_left=seconds_until(environ.get("SLURM_JOB_END_TIME"), "SLURM_JOB_END_TIME", now),
                  scratch=_scratch(environ, root, "SLURM_TMPDIR"))


def pbs(environ: Mapping[str, str], root: Path, now: float) -> Optional[Limits]:
    """Limits from the variables of OpenPBS and Torque. PBS_WALLTIME is the whole length of the job; we start
    when the job does, so it is taken as what is left."""
    if not environ.get("PBS_JOBID"):
        return None
    return Limits("pbs", batch=True, job_id=environ["PBS_JOBID"][:64],
                  cpus=cpus(*first(environ, "NCPUS", "PBS_NUM_PPN")),
                  memory=least([memory(environ.get(name), name) for name in ("PBS_RESC_MEM", "PBS_VMEM")]),
                  time_left=number(environ.get("PBS_WALLTIME"), "PBS_WALLTIME", 1, _FOREVER),
                  scratch=_scratch(environ, root, "PBS_JOBDIR"))


def _scratch(environ: Mapping[str, str], root: Path, own: str) -> Optional[Path]:
    """Local scratch: Slurm's own variable, TMPDIR (made per job by many sites), PBS's job folder at last."""
    order = (own, "TMPDIR") if own != "PBS_JOBDIR" else ("TMPDIR", own)
    return next((place for name in order if (place := folder(root, environ.get(name), name))), None)


# ---------------------------------------------------------------- kernel, MJF, machine


def cgroup(environ: Mapping[str, str], root: Path, now: float) -> Optional[Limits]:
    """The smallest limits on the way from our own cgroup up to the root, version 1 and 2."""
    text = read(below(root, "/proc/self/cgroup"))
    if text is None:
        return None
    top = below(root, "/sys/fs/cgroup")
    memories: list[Optional[int]] = []
    shares: list[Optional[int]] = []
    for line in lines(text):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for level in _upwards(path):
            if not controllers:
                memories.append(_limit(read(top / level / "memory.max")))
                shares.append(_share(*(read(top / level / "cpu.max") or "max").split()[:2]))
            elif "memory" in controllers.split(","):
                memories.append(_limit(read(top / "memory" / level / "memory.limit_in_bytes")))
            elif "cpu" in controllers.split(","):
                for name in {controllers, "cpu"}:
                    shares.append(_share(read(top / name / level / "cpu.cfs_quota_us") or "max",
                                         read(top / name / level / "cpu.cfs_period_us") or ""))
    return Limits("cgroup", cpus=least(shares), memory=least(memories))


def _upwards(path: str) -> list[str]:
    """``/a/b`` → ``["a/b", "a", ""]``; without ``..`` (a cgroup outside our namespace), which would leave the tree."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _limit(text: Optional[str]) -> Optional[int]:
    value = whole_number((text or "").strip())
    return value if value is not None and MIB <= value < _UNLIMITED else None


def _share(quota: str = "", period: str = "") -> Optional[int]:
    """Whole CPUs of a quota, at least one; ``max`` and -1 mean no limit."""
    part, of = whole_number(quota.strip()), whole_number(period.strip())
    return max(1, part // of) if part and of else None


def mjf(environ: Mapping[str, str], root: Path, now: float) -> Optional[Limits]:
    """Machine/Job Features: a folder each, one value a file."""
    values: dict[str, str] = {}
    for variable, names in (("MACHINEFEATURES", ("shutdowntime",)),
                            ("JOBFEATURES", ("allocated_cpu", "max_rss_bytes", "wall_limit_secs", "jobstart_secs",
                                             "shutdowntime_job", "scratch_limit_bytes", "job_id"))):
        place = environ.get(variable, "")
        if "://" in place:
            log.warning("%s is an address (%s); only folders are read: ignored", variable, place)
        elif place:
            found = {name: read(below(root, place) / name, 256) for name in names}
            values.update({name: text.strip() for name, text in found.items() if text is not None})
    if not values:
        return None
    start = number(values.get("jobstart_secs"), "jobstart_secs", _YEAR_2000)
    wall = number(values.get("wall_limit_secs"), "wall_limit_secs", 1, _FOREVER)
    ends = [seconds_until(values.get(name), name, now) for name in ("shutdowntime", "shutdowntime_job")]
    if wall is not None:
        ends.append(max(0, int(wall - max(0.0, now - start))) if start is not None else wall)
    return Limits("mjf", cpus=cpus(values.get("allocated_cpu"), "allocated_cpu"), time_left=least(ends),
                  memory=memory(values.get("max_rss_bytes"), "max_rss_bytes"),
                  job_id=values.get("job_id", "").partition("\n")[0][:64],
                  disk=number(values.get("scratch_limit_bytes"), "scratch_limit_bytes"))


def machine(environ: Mapping[str, str], root: Path, now: float) -> Limits:
    """CPUs we may run on, and memory that is free now. Always answers."""
    status = read(below(root, "/proc/self/status")) or ""
    allowed = re.search(r"^Cpus_allowed_list:\s*([0-9,-]+)", status, re.M)
    count = 0
    for part in allowed.group(1).split(",") if allowed else ():
        low, _, high = part.partition("-")
        count += max(0, int(high or low) - int(low) + 1) if low else 0
    free = re.search(r"^MemAvailable:\s*([0-9]+) kB", read(below(root, "/proc/meminfo")) or "", re.M)
    return Limits("machine", cpus=count or os.cpu_count() or 1, memory=int(free.group(1)) * KIB if free else None)
