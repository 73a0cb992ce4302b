"""What did the batch system grant? The smallest of all that speak wins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Optional

from vmjob.core.files import free_bytes
from vmjob.core.model import Slot
from vmjob.slot import readers
from vmjob.slot.readers import Limits

# The innermost batch system first: a glide-in's HTCondor slot lies within a Slurm or PBS job.
_READERS = (readers.htcondor, readers.slurm, readers.pbs, readers.mjf, readers.cgroup, readers.machine)


def detect(environ: Mapping[str, str], folder: Path, root: Path = Path("/"), now: Optional[float] = None) -> Slot:
    """The slot we are in: limits in bytes and seconds, and where to write.

    ``folder`` is the scratch where no batch system names one. Files are read below ``root``; ``now`` is the
    time in epoch seconds (None: the clock's). ``Slot.sources`` tells who set each limit, as ``memory=cgroup``.
    Never raises over what others wrote: nonsense is ignored with a warning in the log.
    """
    moment = time.time() if now is None else now
    said = [limits for reader in _READERS if (limits := reader(environ, root, moment)) is not None]
    scratch = next((one.scratch for one in said if one.scratch), folder)
    said.append(Limits("disk", disk=_free(scratch)))
    chosen = {key: _smallest(said, key) for key in ("cpus", "memory", "disk", "time_left")}
    batch = next((one for one in said if one.batch), None)
    return Slot(
        kind=batch.source if batch else "machine", batch=batch is not None, scratch=scratch,
        cpus=chosen["cpus"][0] or 1, memory=chosen["memory"][0] or 0, disk=chosen["disk"][0] or 0,
        time_left=chosen["time_left"][0],
        sources=tuple(f"{key}={who}" for key, (_, who) in chosen.items() if who),
        job_id=next((one.job_id for one in said if one.job_id), ""))


def _smallest(said: Sequence[Limits], key: str) -> tuple[Optional[int], str]:
    values = [(getattr(one, key), one.source) for one in said if getattr(one, key) is not None]
    return min(values, key=lambda pair: pair[0]) if values else (None, "")


def _free(folder: Path) -> int:
    """Bytes an ordinary user can still write there; a folder not made yet is its nearest parent."""
    for place in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return free_bytes(place)
    return 0
