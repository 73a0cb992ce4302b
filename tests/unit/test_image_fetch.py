"""Files of an image that come from elsewhere: once for a node, verified on the way."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_image_store import QUIET, _run_many, fork, image, sources
from vmjob.errors import ImageCorrupt, ImageMissing, ScratchFull
from vmjob.files import hash_file
from vmjob.image import blobs
from vmjob.image.store import Store
from vmjob.model import ImageFile

pytestmark = pytest.mark.unit


class Elsewhere:
    """The files in a folder, in small pieces. ``log`` gets a line for each file fetched."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log, self.spoil = folder, log, 0
        log.touch()

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        with self.log.open("a") as log:
            log.write(f"{file.role}\n")
        data = (self.folder / file.path).read_bytes()
        if self.spoil:
            self.spoil -= 1
            data = b"x" + data[1:]
        for start in range(0, len(data), 100_000):
            yield data[start:start + 100_000]

    @property
    def fetched(self) -> list[str]:
        return self.log.read_text().split()


def test_fetched_once_then_here(tmp_path: Path) -> None:
    one, fetch, store = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Store(tmp_path / "c")
    for _ in range(2):
        opened = store.open(one, {}, QUIET, fetch)
        assert [hash_file(opened.paths[file.role])[0] for file in one.files] == [file.sha256 for file in one.files]
    assert fetch.fetched == ["disk", "kernel", "initrd"] and not list((tmp_path / "c/tmp").iterdir())
    assert len(list((tmp_path / "c/verified").iterdir())) == 3


def test_what_came_with_the_job_is_not_fetched(tmp_path: Path) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")
    here = {role: path for role, path in sources(tmp_path / "i").items() if role != "kernel"}
    Store(tmp_path / "c").open(one, here, QUIET, fetch)
    assert fetch.fetched == ["kernel"]


def test_eight_processes_fetch_once(tmp_path: Path) -> None:
    one, fetch = image(tmp_path / "i", size=20 * 2**20), Elsewhere(tmp_path / "i", tmp_path / "log")

    def work(number: int) -> None:
        opened = Store(tmp_path / "c").open(one, {}, QUIET, fetch)
        assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256

    assert _run_many(8, work) == [0] * 8
    assert sorted(fetch.fetched) == ["disk", "initrd", "kernel"]


def test_wrong_bytes_are_fetched_once_more(tmp_path: Path) -> None:
    one, fetch, store = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Store(tmp_path / "c")
    fetch.spoil = 1
    store.open(one, {}, QUIET, fetch)
    assert fetch.fetched == ["disk", "disk", "kernel", "initrd"]


def test_wrong_bytes_twice_are_told(tmp_path: Path) -> None:
    one, fetch, store = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Store(tmp_path / "c")
    (tmp_path / "i/disk").write_bytes(b"other" * 100)
    with pytest.raises(ImageCorrupt, match=f"disk.*{one.files[0].sha256}"):
        store.open(one, {}, QUIET, fetch)
    assert fetch.fetched == ["disk", "disk"]
    assert not list((tmp_path / "c/tmp").iterdir()) and not list((tmp_path / "c/blobs/sha256").iterdir())


def test_a_spoilt_blob_is_fetched_anew(tmp_path: Path) -> None:
    one, fetch, store = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Store(tmp_path / "c")
    path = store.open(one, {}, QUIET, fetch).paths["kernel"]
    path.chmod(0o644)
    path.write_bytes(b"garbage")
    assert store.open(one, {}, QUIET, fetch).paths["kernel"].read_bytes() == b"kernel"
    assert fetch.fetched == ["disk", "kernel", "initrd", "kernel"]


def test_without_a_cache_it_is_for_this_run_alone(tmp_path: Path) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    opened = Store(tmp_path / "file" / "cache").open(one, {}, QUIET, fetch, tmp_path / "run")
    assert {path.parent for path in opened.paths.values()} == {tmp_path / "run"}
    assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256


def test_no_room_is_told_before_it_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 10, 5, 5, 1, 1, 1, 0, 255)))
    with pytest.raises(ScratchFull):
        Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path)
    assert fetch.fetched == []


def test_a_disk_that_fills_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")

    def full(descriptor: int, data: memoryview) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(blobs, "_write", full)
    with pytest.raises(ScratchFull):
        Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path)
    assert not list((tmp_path / "c/tmp").iterdir()) and not (tmp_path / one.files[0].sha256).exists()


def test_failures_on_the_way_leave_nothing(tmp_path: Path) -> None:
    one = image(tmp_path / "i")

    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        yield b"one"
        raise ImageMissing("gone")

    with pytest.raises(ImageMissing):
        Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path)
    assert not list((tmp_path / "c/tmp").iterdir())


def test_killed_while_fetching(tmp_path: Path) -> None:
    """The next one takes the lock and begins anew."""
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")

    def slow(file: ImageFile, start: int) -> Iterator[bytes]:
        for piece in fetch(file, start):
            yield piece
            time.sleep(60)

    child = fork.Process(target=Store(tmp_path / "c").open, args=(one, {}, QUIET, slow))
    child.start()
    while not list((tmp_path / "c").glob("tmp/*")):
        time.sleep(0.01)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert not list((tmp_path / "c/tmp").iterdir())
