"""This machine is the slot: a job is run here and now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from vmjob.core import config, interrupt
from vmjob.core.config import default_scratch
from vmjob.core.errors import VmjobError
from vmjob.core.model import Job
from vmjob.core.progress import Reporter
from vmjob.core.result import Result
from vmjob.job import resolve


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
    from vmjob.slot.limits import detect

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
