"""The slot's side before and after the run: what is read, and the one file that goes back."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.job.test_payload import make
from vmjob.core import config
from vmjob.core.errors import ChirpFailed, JobError, TokenRefused
from vmjob.core.model import Job
from vmjob.core.progress import Reporter
from vmjob.core.result import Result
from vmjob.job.payload import read_payload
from vmjob.run import slot_run as slotrun
from vmjob.run.result_file import keep_result
from vmjob.run.slot_run import SlotRun, slot_run
from vmjob.slot import submit_side
from vmjob.slot.chirp import Chirp
from vmjob.stage.archive import pack

pytestmark = pytest.mark.unit

JOB = Job("j", "micro", ("true",), environment=(("A", "1"), ("B", "2")))


@pytest.mark.parametrize("query, environment", [
    ("", {"A": "1", "B": "2"}), ("B=3&C=", {"A": "1", "B": "3", "C": ""}),
    ("C=a%26b%3Dc+d%0A%C3%A9", {"A": "1", "B": "2", "C": "a&b=c d\n\u00e9"})])
def test_parameters(query: str, environment: dict[str, str]) -> None:
    from vmjob.job.file import with_parameters

    assert dict(with_parameters(JOB, query, "--parameters").environment) == environment


@pytest.mark.parametrize("query", ["A", "A=1&&B", "1A=2", "A-B=1", "=1", "A=%00", "A=%ff"])
def test_parameters_that_are_none(query: str) -> None:
    from vmjob.job.file import with_parameters

    with pytest.raises(JobError, match="--parameters"):
        with_parameters(JOB, query, "--parameters")


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_pack_results(tmp_path: Path) -> None:
    folder, target = tmp_path / "r", tmp_path / "results.tar"
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/x").write_bytes(b"1" * 1000)
    (folder / "a/link").symlink_to("../../etc/../passwd")
    (folder / "a/to-folder").symlink_to("b")
    for name in ("result.json", "console.log", "0first", ".hidden", ".vmjob.lock"):
        (folder / name).write_text(name)
    slotrun.pack_results(folder, target)
    assert names(target) == ["result.json", "console.log", ".hidden", "0first", "a", "a/b", "a/link", "a/to-folder",
                             "a/b/x"]
    with tarfile.open(target) as archive:
        assert archive.getmember("a/link").linkname == "../../etc/../passwd"
        assert archive.getmember("a/to-folder").issym()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "results.tar"]


def test_packing_hears_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its patience is over at once here; what comes back is a result that says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slotrun, "PACKING", 0.0)

    def run(this: Any, results: Path, announcer: Any, chirp: Any) -> Result:
        for number in range(10):
            (results / str(number)).write_bytes(b"x" * 1000)
        return keep_result(Result("j", "ok", 0, 0, outputs=("0",)), results)

    def copied(archive: int, position: int, entry: Any, advance: Any) -> int:
        if entry.name == "5":
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 60)  # which the timer ends
        return append(archive, position, entry, advance)

    append = pack._append
    monkeypatch.setattr(pack, "_append", copied)
    monkeypatch.setattr(slotrun, "_run", run)
    result = slot_run(SlotRun(tmp_path, pack=tmp_path / "results.tar", scratch=tmp_path), Reporter())
    assert result.failure_kind == "Interrupted" and result.status == 225
    assert names(tmp_path / "results.tar") == ["result.json"]


def test_outputs_that_cannot_be_packed_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(this: Any, results: Path, *_: Any) -> Result:
        real = slotrun.pack_results

        def once(folder: Path, target: Path) -> None:
            monkeypatch.setattr(slotrun, "pack_results", real)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(slotrun, "pack_results", once)
        return keep_result(Result("j", "ok", 0, 0), results)

    monkeypatch.setattr(slotrun, "_run", run)
    result = slot_run(SlotRun(tmp_path, pack=Path("out.tar")), Reporter())
    assert (result.outcome, result.failure_kind) == ("failed", "ScratchFull")
    assert names(tmp_path / "out.tar") == ["result.json"]
    with tarfile.open(tmp_path / "out.tar") as archive:
        member = archive.extractfile("result.json")
        assert member and json.load(member)["failure"]["kind"] == "ScratchFull"
    assert [p.name for p in tmp_path.iterdir()] == ["out.tar"]


@pytest.mark.parametrize("damage, kind", [("{", "JobError"), ('{"schema": 1}', "JobError"), ("", "JobError")])
def test_a_damaged_payload_has_a_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str,
                                            kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.json").write_text(damage)
    result = slot_run(SlotRun(tmp_path, pack=tmp_path / "out.tar"), Reporter())
    assert result.failure_kind == kind and names(tmp_path / "out.tar") == ["result.json"]


def test_an_image_that_can_be_fetched_need_not_be_there(tmp_path: Path) -> None:
    make(tmp_path)
    files = sorted((tmp_path / "image").iterdir())
    files[0].rename(tmp_path / files[0].name)  # delivered flat
    files[1].unlink()
    payload = read_payload(tmp_path, fetchable=True)
    assert set(payload.image_files.values()) == {tmp_path / files[0].name, *files[2:]}


# ---------------------------------------------------------------- a glide-in's token


class Submitter(Chirp):
    """The submit side, with these files; the job's own folder is one of HTCondor's spool."""

    def __init__(self, **files: bytes) -> None:
        self.files = {f"/s/12/0/cluster12.proc0.subproc0/{name}": data for name, data in files.items()}

    def get(self, name: str) -> str:
        return "/s/7/3/cluster7.proc3.subproc0" if name == "Iwd" else ""

    def read(self, path: str, length: int, offset: int = 0) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def remove(self, path: str, patience: float) -> None:
        if self.files.pop(path, None) is None:
            raise ChirpFailed(f"{path} cannot be removed")


@pytest.mark.parametrize("at", ["12.0/token-3", "/s/12/0/cluster12.proc0.subproc0/token-3"])
def test_a_token_is_read_at_the_submit_side_and_removed_there(at: str, caplog: pytest.LogCaptureFixture) -> None:
    chirp = Submitter(**{"token-3": b"words", "token-4": b""})
    assert submit_side.fetch(at, chirp) == "words" and len(chirp.files) == 2
    with pytest.raises(TokenRefused, match="empty"):
        submit_side.fetch(at.replace("-3", "-4"), chirp)
    submit_side.remove(at, chirp)
    assert list(chirp.files.values()) == [b""]
    with pytest.raises(TokenRefused, match="is gone") as told:
        submit_side.fetch(at, chirp)
    assert "submit a new one" in told.value.hint
    submit_side.remove(at, chirp)  # never raises
    assert "stays at the submit side" in caplog.text
    with pytest.raises(ChirpFailed, match="the token is at the submit side"):
        submit_side.fetch(at, None)


@pytest.mark.parametrize("at, name", [("", "token"), ("token-3", "token-3"), ("/s/x/token-3", "token")])
def test_a_token_beside_the_payload_is_taken_first(tmp_path: Path, at: str, name: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("words")
    seen: list[SlotRun] = []
    monkeypatch.setattr(slotrun, "_run", lambda this, results, *_: seen.append(this) or Result("j", "ok", 0, 0))
    slot_run(SlotRun(tmp_path, tmp_path, token_at=at), Reporter())
    assert seen[0].token == "words" and "words" not in repr(seen) and not (tmp_path / name).exists()
    with pytest.raises(TokenRefused, match="no token in the payload"):
        submit_side.fetch("token-3", None)


# ---------------------------------------------------------------- the site's cache for jobs


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "node"
    place.mkdir()
    place.chmod(0o1777)
    for name in ("VMJOB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMJOB_NODE_CACHE", str(place))
    return place / f"uid-{os.getuid()}"


def test_the_sites_cache_is_private_to_each_user(node: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config.cache_dir() == node and node.stat().st_mode & 0o777 == 0o700
    node.chmod(0o755)
    assert config.cache_dir() == node and node.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path / "own"))
    assert config.cache_dir() == tmp_path / "own"


def test_what_somebody_else_made_there_is_not_used(node: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    node.symlink_to(tmp_path / "elsewhere")
    assert config.cache_dir() == tmp_path / "home/.cache/vmjob"
    node.unlink()
    node.mkdir()
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    node.rename(node.with_name(f"uid-{real + 1}"))
    assert config.cache_dir() != node.with_name(f"uid-{real + 1}")


def test_no_such_folder_is_no_harm(node: Path) -> None:
    node.parent.rmdir()
    assert config.cache_dir().name == "vmjob"


@pytest.mark.parametrize("words", [["--results", "res"], ["--results=res"], ["--pack", "r.tar"], []])
def test_options_that_cannot_be_used_are_a_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      words: list[str]) -> None:
    """The wrapper has written that a run begins."""
    from vmjob.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["slot-run", "--payload", ".", *words, "--bogus"]) == 200
    if "--pack" in words:
        with tarfile.open("r.tar") as archive:
            file = archive.extractfile("result.json")
            assert file
            text = file.read()
    else:
        text = (tmp_path / ("res" if words else ".") / "result.json").read_bytes()
    assert json.loads(text)["failure"]["kind"] == "JobError"
