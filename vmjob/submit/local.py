"""The target ``local``: the same payload and wrapper as at a site, in slots that are folders here."""

from __future__ import annotations

import sys
from pathlib import Path

from vmjob.core import process
from vmjob.core.files import write_secret
from vmjob.core.model import Job
from vmjob.core.ownnames import TOKEN, WRAPPER
from vmjob.core.progress import Reporter
from vmjob.job import bundle
from vmjob.job.parameters import Parameters
from vmjob.submit.submission import packed


def run_here(job: Job, base: Path, parameters: Parameters, results: Path, reporter: Reporter) -> list[int]:
    """Run the jobs, one after the other; their exit statuses. Results go into ``results`` (of
    several into ``results``/NUMBER), with what the program said. Raises as packed; what a run fails of, its
    status tells."""
    statuses = []
    with packed(job, base, parameters, reporter) as (_, payload, folder):
        bundle.add_image(folder, payload)
        with reporter.bar("jobs", parameters.count, "job") as bar:
            for number in range(parameters.count):
                out = results if parameters.count == 1 else results / str(number)
                out.mkdir(parents=True, exist_ok=True)
                if payload.token:  # each slot takes its own
                    (folder / TOKEN).unlink(missing_ok=True)
                    write_secret(folder / TOKEN, payload.token)
                statuses.append(_run(folder, out, parameters.of(number)))
                bar.advance(1)
    return statuses


def _run(payload: Path, out: Path, row: str) -> int:
    with (out / "stdout.txt").open("wb") as stdout, (out / "stderr.txt").open("wb") as stderr:
        child = process.spawn(["env", f"VMJOB_PYTHON={sys.executable}", "sh", payload / WRAPPER, "--results",
                               out.absolute(), f"--parameters={row}"], cwd=out, stdout=stdout, stderr=stderr)
        try:
            return child.wait()
        except BaseException:
            child.terminate()  # it ends its guest in order
            child.wait()
            raise
