"""Results on their way back to the user: one bad job never costs another's. A folder stands for the schedd's spool."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import pytest

from vmjob.batch.condor import file_name
from vmjob.batch.jobs import JobId, JobInfo, State
from vmjob.core.pool_errors import TransferFailed
from vmjob.core.progress import Reporter
from vmjob.core.result import Result
from vmjob.submit import results

pytestmark = pytest.mark.unit

GOOD = json.dumps(Result("j", "ok", 0, 0, outputs=("x",)).to_json()).encode()


class Spool:
    """What a schedd has: files by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[int] = []
        folder.mkdir()

    def add(self, number: int, *members: tuple[str, Optional[bytes]], result: bytes = GOOD) -> JobInfo:
        """A job's results: (name, bytes; None for a folder)."""
        job = JobInfo(JobId(7, number), "j", State.DONE, results=True)
        with tarfile.open(self.folder / file_name("results", job.id), "w") as archive:
            for name, data in (("result.json", result), *members):
                info = tarfile.TarInfo(name)
                info.size, info.type = len(data or b""), tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
                archive.addfile(info, io.BytesIO(data or b""))
        for kind in ("out", "err"):
            (self.folder / file_name(kind, job.id)).write_text(f"{kind} of {number}\n")
        return job

    def bring(self, jobs: Sequence[JobInfo], kinds: Sequence[str], folder: Path) -> None:
        for job in jobs:
            for kind in kinds:
                try:
                    shutil.copy(self.folder / file_name(kind, job.id), folder)
                except FileNotFoundError as missing:
                    raise TransferFailed(str(missing)) from missing

    def fetched(self, jobs: Sequence[JobInfo]) -> None:
        self.done += [job.id.proc or 0 for job in jobs]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def fetch(spool: Spool, jobs: Sequence[JobInfo], **more: Any) -> list[str]:
    """What became of each."""
    batch: Any = spool
    found = results.fetch(batch, jobs, spool.folder.parent / "out", Reporter(), **more)
    assert [one.job for one in found] == list(jobs)
    return [one.failure.kind if one.failure else one.document["outcome"] for one in found]


EVIL: list[list[tuple[str, Optional[bytes]]]] = [
    [("stdout.txt", None)], [("stdout.txt/x", b"")], [("stderr.txt", None), ("stdout.txt", None)],
    [("stdout.txt", None), ("vmjob-stdout.txt", None)], [("stdout.txt", b"own"), ("vmjob-stdout.txt", b"own")]]


@pytest.mark.parametrize("evil", EVIL, ids=lambda evil: "+".join(name for name, _ in evil))
def test_names_that_fetch_itself_writes(spool: Spool, tmp_path: Path, evil: list[tuple[str, Optional[bytes]]]) -> None:
    own = Result("j", "ok", 0, 0, outputs=tuple(name for name, data in evil if data)).to_json()
    jobs = [spool.add(0, ("x", b"0")), spool.add(1, *evil, result=json.dumps(own).encode()), spool.add(2, ("x", b"2"))]
    assert fetch(spool, jobs) == ["ok", "ok", "ok"] and spool.done == [0, 1, 2]
    for number in (0, 2):
        assert (tmp_path / f"out/{number}/stdout.txt").read_text() == f"out of {number}\n"
        assert (tmp_path / f"out/{number}/x").read_text() == str(number)
    for name, data in evil:
        if data:
            assert (tmp_path / "out/1" / name).read_bytes() == data  # a job's own file stays


@pytest.mark.parametrize(("members", "result", "kind"), [
    ([("../x", b"")], GOOD, "OutputRefused"), ([("result.json/x", b"")], GOOD, "OutputRefused"),
    ([], b"{", "OutputRefused"), ([], b"[" * 100_000, "OutputRefused"), ([], b"\xff", "OutputRefused"),
    ([], b" " * (17 * 2**20), "OutputRefused"), ([(".vmjob.lock", b"")], GOOD, "OutputRefused"),
    ([("x" * 300, b"")], GOOD, "OutputRefused")])
def test_one_bad_job_costs_no_other(spool: Spool, tmp_path: Path, members: list[tuple[str, Optional[bytes]]],
                                    result: bytes, kind: str) -> None:
    jobs = [spool.add(0, ("x", b"0")), spool.add(1, *members, result=result), spool.add(2, ("x", b"2"))]
    assert fetch(spool, jobs) == ["ok", kind, "ok"] and spool.done == [0, 2]


def test_what_is_in_the_way_of_one_job(spool: Spool, tmp_path: Path) -> None:
    jobs = [spool.add(number, ("x", b"")) for number in range(4)]
    (tmp_path / "out/3/x").mkdir(parents=True)
    (tmp_path / "out/1").write_text("no folder")
    (tmp_path / "out/2/result.json").mkdir(parents=True)
    assert fetch(spool, jobs) == ["ok", "SlotError", "OutputRefused", "OutputRefused"] and spool.done == [0]


def test_a_job_whose_file_is_lost(spool: Spool) -> None:
    jobs = [spool.add(number) for number in range(6)]
    for number in (0, 3):
        (spool.folder / file_name("out", jobs[number].id)).unlink()
    assert fetch(spool, jobs) == ["TransferFailed", "ok", "ok", "TransferFailed", "ok", "ok"]
    assert spool.done == [1, 2, 4, 5]


def test_a_schedd_that_gives_nothing(spool: Spool) -> None:
    jobs = [spool.add(number) for number in range(6)]
    shutil.rmtree(spool.folder)
    spool.folder.mkdir()
    with pytest.raises(TransferFailed):
        fetch(spool, jobs)
    with pytest.raises(TransferFailed):
        fetch(spool, jobs[:1])


def test_result_json_stays_small() -> None:
    """Of very many outputs it names the first, and says how many more there are."""
    import jsonschema

    from tests.conftest import ROOT
    from vmjob.core.result import Staged

    names = tuple(f"{'x' * 240}/{n:0249d}" for n in range(60_000))
    body = Result("j", "ok", 0, 0, outputs=names, staged=tuple(Staged(n, f"https://h/{n}", 1, "0" * 64) for n in names)
                  ).to_json()
    assert len(json.dumps(body)) < 4 * 2**20
    assert body["outputs"] == [*names[:len(body["outputs"])]]
    assert len(body["outputs"]) + body["outputs_more"] == len(names)
    assert len(body["staged"]) + body["staged_more"] == len(names)
    short = tuple(map(str, range(300_000)))
    assert Result("j", "ok", 0, 0, outputs=short).to_json()["outputs_more"] == 290_000
    few = Result("j", "ok", 0, 0, outputs=("x",)).to_json()
    assert "outputs_more" not in few and "staged_more" not in few
    schema = json.loads((ROOT / "vmjob/schemas/result.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(body)), schema)
