"""vmjob as a library: what the command does, with typed results.

>>> import vmjob
>>> job = vmjob.Job(name="hello", image="micro", command=("sh", "-c", "echo hello; exit 7"))
>>> result = vmjob.run_job(job)
>>> result.outcome, result.exit_status, result.failure
('program-failed', 7, None)
>>> [stage.name for stage in result.stages]
['stage', 'verify', 'probe', 'boot', 'payload', 'collect', 'teardown']

To see the program's output, pass a Reporter whose ``output`` does something with it:

>>> class Printing(vmjob.Reporter):
...     def output(self, stream, data):
...         print(stream, data.decode().strip())
>>> vmjob.run_job(job, reporter=Printing()).status
stdout hello
7

What the caller did wrong before anything was started is raised:

>>> vmjob.run_job(vmjob.Job(name="x", image="no-such-image", command=("true",)))
Traceback (most recent call last):
    ...
vmjob.core.errors.ImageMissing: there is no image 'no-such-image' on this machine
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob.core import config
from vmjob.core.config import default_scratch
from vmjob.core.model import Job
from vmjob.core.progress import Reporter
from vmjob.job import resolve
from vmjob.run.here import run_job

if TYPE_CHECKING:
    from vmjob.submit.submission import Submitted

__all__ = ["pack_job", "run_job", "submit_job"]


def pack_job(job: Job, target: Path, *, base: Optional[Path] = None, reporter: Optional[Reporter] = None,
             carry: bool = False) -> int:
    """Write the payload of ``job`` as a folder, or a file where ``target`` ends in .tar; its size in bytes. ``carry``:
    with its image, although that has sources that nodes could fetch it from. Raises as run_job."""
    from vmjob.core.scratch import scratch as private
    from vmjob.image.store.images import Store
    from vmjob.job import bundle

    listener = reporter or Reporter()
    with private(default_scratch()) as folder:
        payload = resolve.resolve(job, base or Path(), Store(config.store_dir()), folder, listener)
        return bundle.pack(resolve.carried(payload, listener, carry), target, listener)


def submit_job(job: Job, to: Optional[str] = None, *, count: Optional[int] = None, settings: Sequence[str] = (),
               table: Optional[Path] = None, base: Optional[Path] = None,
               reporter: Optional[Reporter] = None) -> Submitted:
    """Send ``count`` jobs to the target ``to`` (a name of targets.yaml or a URL, not ``local``; None: the default);
    the number of their cluster there. ``settings`` (NAME=VALUE) and ``table`` are as vmjob submit's --set and --from.

    Raises JobError, ImageError, InputMissing; PoolUnreachable, PoolRefused and the other PoolErrors.
    """
    from vmjob.batch import targets
    from vmjob.core.errors import JobError
    from vmjob.job.parameters import parameters
    from vmjob.submit import submission

    target = targets.choose(to)
    if target.kind == "local":
        raise JobError("the target local is this machine", "call run_job")
    return submission.submit_job(job, base or Path(), target, parameters(count, settings, table),
                                 reporter or Reporter())
