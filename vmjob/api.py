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
vmjob.errors.ImageMissing: there is no image 'no-such-image' on this machine
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from vmjob.core import config, interrupt
from vmjob.core.errors import VmjobError
from vmjob.core.model import Job
from vmjob.core.progress import Reporter
from vmjob.core.result import Result
from vmjob.job import resolve

if TYPE_CHECKING:
    from vmjob.submit.submission import Submitted


def default_scratch() -> Path:
    """Where a run keeps its temporary files: $TMPDIR, else /var/tmp (a disk, where /tmp may be memory)."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")


def run_job(job: Job, *, base: Optional[Path] = None, results: Optional[Path] = None, scratch: Optional[Path] = None,
            reporter: Optional[Reporter] = None) -> Result:
    """Run ``job`` here and now; what became of it is the Result, failures of the run included.

    ``base``: the folder that inputs are relative to (default: the current one). ``results``: an existing folder for
    result.json and the outputs; without it they are dropped. ``scratch``: a folder for temporary files. Raises
    ImageMissing, ImageError, InputMissing or JobError for what is wrong before a run begins. Takes over signals (and
    the timer of SIGALRM) while it runs, so call it from the main thread.
    """
    from vmjob.core.scratch import scratch as private
    from vmjob.image.store.images import Store
    from vmjob.run.flow import run
    from vmjob.run.result_file import refused
    from vmjob.slot.detect import detect

    listener = reporter or Reporter()
    slot = detect(os.environ, scratch or default_scratch())
    try:
        with private(slot.scratch) as folder:
            interrupt.check()
            payload = resolve.resolve(job, base or Path(), Store(config.store_dir()), folder, listener)
            return run(payload, slot, resolve.home_of(payload), results=results, reporter=listener)
    except (VmjobError, OSError) as error:
        if results is not None:  # an earlier run's result would be taken for this one's
            refused(error, results, job.name)
        raise


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
