"""Looking into a job that runs elsewhere: its guest's shell and console, and what it has said, by condor_ssh_to_job.

That starts an sshd in the job's slot, as the job's user, and reaches it through HTCondor's own connections. It lands
in the job's scratch folder, where the wrapper lies that finds a Python.
"""

from __future__ import annotations

import os
import re
from typing import Optional

from vmjob.batch.jobs import JobInfo, State
from vmjob.batch.pool import Pool, named
from vmjob.batch.targets import Place
from vmjob.core import process
from vmjob.core.errors import CommandMissing, SlotError, VmjobError
from vmjob.core.machinetext import last_line, lines
from vmjob.core.ownnames import WRAPPER
from vmjob.core.pool_errors import JobsPending, JobUnknown, PoolError

TOOL = "condor_ssh_to_job"
_FILES = {"out": "_condor_stdout", "err": "_condor_stderr"}
_MISSING = "it comes with HTCondor's own packages (apt-get install htcondor), not with its Python bindings"
# of the slot's sshd for users without a home; of the tool, which we say better
_QUIET = (b"Could not chdir to home directory", b"Unable to fetch job ad")
# what the tool itself says, and no remote command does
_COMPLAINTS = re.compile(r"fetch job ad|[Ff]ailed to |Can't |ERROR: |Rejecting |job is on hold|proxy communication|"
                         r"[Uu]nauthorized|not authorized|DENIED|sshd_setup")


def command(place: Place, job: str, remote: str, tty: bool = False) -> list[str]:
    """The argv that runs ``remote`` (for a shell) beside ``job``; ``tty``: on a terminal there.

    For some seconds after a job was started the queue does not know where, hence ``-auto-retry``. ``-e none``: a line
    that begins with ~ is the guest's.
    """
    argv = [TOOL, "-auto-retry"]
    argv += ["-ssh", "ssh -q -t -e none"] if tty else ["-ssh", "ssh -q"]
    argv += ["-pool", place.collector] if place.collector else []
    argv += ["-name", place.schedd] if place.schedd else []
    return [*argv, job, remote]


def where(place: Place, job: JobInfo) -> tuple[Place, str]:
    """The schedd that runs ``job``, and the job's number there: for a grid job the compute element's, else ``place``
    itself. Raises JobUnknown where the compute element does not have it yet."""
    if not job.grid_id:
        return place, str(job.id)
    kind, *words = job.grid_id.split()
    if kind != "condor" or len(words) != 3:
        if kind == "condor":
            raise JobsPending(f"{job.id} has not reached the compute element",
                              "wait until vmjob status calls it running")
        raise JobUnknown(f"{job.id} runs where HTCondor cannot look into it ({kind})", "wait until it has ended")
    return Place(words[1], words[0]), words[2]


def attach(pool: Pool, job: JobInfo, what: str) -> int:
    """Be at the guest's ``shell`` or see its ``console`` on our standard streams; the status of what ran there.

    Raises JobUnknown or SlotError when there is no guest to look into, CommandMissing, and PoolRefused,
    PoolUnreachable or PoolError when HTCondor does not let us.
    """
    if job.state is not State.RUNNING:
        raise _not_running(job)
    tty = what == "shell" and os.isatty(0) and os.isatty(1)
    place, number = where(pool.named, job)
    status, said = process.attached([_tool(), *command(place, number, f"sh {WRAPPER} attach {what}", tty)[1:]],
                                    terminal=tty, quiet=_QUIET, hint=_MISSING)
    failure = failed(status, said, place, str(job.id))
    if failure:
        raise failure
    return status


def tail(pool: Pool, job: JobInfo, kind: str) -> bytes:
    """What a running job has written so far to ``out`` or ``err``. Raises as attach does."""
    place, number = where(pool.named, job)
    done = process.run([_tool(), *command(place, number, f"cat {_FILES[kind]}")[1:]], check=False, timeout=120,
                       hint=_MISSING)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        last = last_line(said, "no reason given")
        raise failed(done.returncode, said, place, str(job.id)) or PoolError(
            f"{place}: job {job.id} cannot be looked into: {last}", "wait until it has ended: vmjob wait")
    return done.stdout


def failed(status: int, said: str, place: Place, job: str) -> Optional[VmjobError]:
    """The error that the tool's ``status`` and the end of its stderr mean; None where the status is that of what ran
    in the slot (which has told its own errors). Pure."""
    if status == 0:
        return None
    last = next((line for line in reversed(lines(said)) if _COMPLAINTS.search(line)), "")
    if "fetch job ad" in last:
        return JobUnknown(f"{place} has no job {job} of yours that runs", "vmjob status shows those there are")
    if status == 1 and last:
        found = named(last, place)
        if type(found) is PoolError:
            return PoolError(f"{place}: job {job} cannot be looked into: {last}", "the site may forbid it "
                             "(ENABLE_SSH_TO_JOB), or its node has no sshd; vmjob logs shows what the job has said")
        return found
    if status == 255:  # ssh's own, who was told to be quiet
        return PoolError(f"{place}: the connection into job {job} was lost",
                         "the job may have ended (vmjob status), or its node cannot give terminals: try it in a pipe, "
                         "as in: echo id | vmjob ssh ID")
    return None


def _tool() -> str:
    found = process.which(TOOL)
    if not found:
        raise CommandMissing(f"the program {TOOL} is not installed here", _MISSING)
    return found


def _not_running(job: JobInfo) -> SlotError:
    hint = {State.HELD: f"vmjob release {job.id} lets it run again", State.SUSPENDED: "the site has paused it: wait",
            State.IDLE: "it waits for a slot; vmjob status shows when it runs"}
    return SlotError(f"{job.id} is {job.state.value}: there is no guest to look into",
                     hint.get(job.state, f"its results: vmjob fetch {job.id}"))
