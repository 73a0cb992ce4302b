"""What a shell's output is cut from, and how condor_ssh_to_job is called and understood."""

from __future__ import annotations

import pytest

from vmjob.batch.attach import command, failed, where
from vmjob.batch.jobs import JobId, JobInfo, State
from vmjob.batch.targets import Place
from vmjob.core.pool_errors import JobsPending, JobUnknown, PoolError, PoolRefused
from vmjob.guest.attach import Marks

pytestmark = pytest.mark.unit

READY, EXIT = b"\033]7777;ready\007", b"\033]7777;exit %d\007"
HERE = Place("ce.example.org:9619", "ce.example.org")


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_the_shell_is_what_lies_between_the_marks(step: int) -> None:
    own = b"\033[6n$ \033]0;title\007 \033]7777;other\007 \033]7777"
    said = b"login: \033]7777;exit 9\007\033]77" + READY + own + EXIT % 130 + b"what follows"
    marks, shown = Marks(), b""
    for at in range(0, len(said), step):
        shown += marks.feed(said[at:at + step])
    assert (shown, marks.ready, marks.status) == (own, True, 130)


def test_nothing_but_a_mark_is_held_back() -> None:
    marks = Marks()
    marks.feed(READY)
    assert marks.feed(b"$ \033[6n") == b"$ \033[6n"
    assert marks.feed(b"\033]7777;exit") == b"" and marks.feed(b" is a word") == b"\033]7777;exit is a word"


def test_command() -> None:
    assert command(HERE, "42.0", "sh vmjob-wrapper.sh attach shell", tty=True) == [
        "condor_ssh_to_job", "-auto-retry", "-ssh", "ssh -q -t -e none", "-pool", "ce.example.org:9619", "-name",
        "ce.example.org", "42.0", "sh vmjob-wrapper.sh attach shell"]
    assert command(Place(), "42.0", "true") == ["condor_ssh_to_job", "-auto-retry", "-ssh", "ssh -q", "42.0", "true"]


def test_a_grid_job_is_looked_into_where_it_runs() -> None:
    job = JobInfo(JobId(7, 0), "a", State.RUNNING)
    grid = JobInfo(JobId(7, 0), "a", State.RUNNING, grid_id="condor ce.vo ce.vo:9619 12.0")
    assert where(HERE, job) == (HERE, "7.0")
    assert where(HERE, grid) == (Place("ce.vo:9619", "ce.vo"), "12.0")
    with pytest.raises(JobsPending, match="has not reached"):
        where(HERE, JobInfo(JobId(7, 0), "a", State.RUNNING, grid_id="condor ce.vo ce.vo:9619"))


@pytest.mark.parametrize("status, said, kind", [
    (0, "anything", None), (3, "sh: nosuch: not found", None), (220, "vmjob: no guest", None), (1, "grep: what", None),
    (1, "Unable to fetch job ad; is it still in the queue?", JobUnknown),
    (1, "Failed to connect to schedd: SECMAN:2010:Received \"DENIED\" from server, permission denied", PoolRefused),
    (1, "Rejecting request, because ENABLE_SSH_TO_JOB=false", PoolError),
    (1, "bob is not authorized for access to the starter for job 81.0", PoolRefused), (255, "", PoolError),
])
def test_what_the_tool_says_has_a_name(status: int, said: str, kind: object) -> None:
    found = failed(status, said, HERE, "42.0")
    assert (type(found) if found else None) is kind
    assert found is None or found.hint
