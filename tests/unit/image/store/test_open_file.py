"""Files of an image that come from elsewhere: once for a node, verified on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.image.store.test_images import QUIET, Counting, _run_many, fork, image, sources
from tests.ways import Way
from vmjob.core import config, locks
from vmjob.core.errors import ImageCorrupt, ImageOutOfReach, Interrupted, ScratchFull
from vmjob.core.files import hash_file
from vmjob.core.model import Fetcher, ImageFile, Manifest
from vmjob.image.store import copy
from vmjob.image.store.images import Store

pytestmark = pytest.mark.unit


class Elsewhere(Fetcher):
    """The files in a folder, in small pieces. ``log`` gets a line for each file fetched."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log, self.spoil = folder, log, 0
        log.touch()

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        with self.log.open("a") as log:
            log.write(f"{file.role}{f'@{start}' if start else ''}\n")
        data = (self.folder / file.path).read_bytes()
        if self.spoil:
            self.spoil -= 1
            data = data[:start] + b"x" + data[start + 1:]
        for at in range(start, len(data), 100_000):
            yield data[at:at + 100_000]

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
    assert not list((tmp_path / "c/tmp").iterdir()) and not list((tmp_path / "c").glob("blobs/sha256/*"))


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

    def full(descriptor: int, data: memoryview, at: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(copy, "_write", full)
    with pytest.raises(ScratchFull):
        Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path)
    assert not list((tmp_path / "c/tmp").iterdir()) and not (tmp_path / one.files[0].sha256).exists()


def _broken_off(tmp_path: Path, one: Manifest, failure: Exception, size: int) -> Path:
    """The first ``size`` bytes of the disk have come, then ``failure``; what is left of them."""
    data = (tmp_path / "i/disk").read_bytes()

    @Way
    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        yield data[:size]
        raise failure

    with pytest.raises(type(failure)):
        Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path)
    return tmp_path / "c/tmp" / one.files[0].sha256


@pytest.mark.parametrize("failure", [ImageOutOfReach("gone"), Interrupted("SIGTERM")])
def test_what_has_come_stays_and_only_the_rest_is_fetched(tmp_path: Path, failure: Exception) -> None:
    one, fetch, seen = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Counting()
    left = _broken_off(tmp_path, one, failure, 1_000_000)
    assert left.stat().st_size == 1_000_000
    opened = Store(tmp_path / "c").open(one, {}, seen, fetch)
    assert fetch.fetched == ["disk@1000000", "kernel", "initrd"] and not list((tmp_path / "c/tmp").iterdir())
    assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256
    assert seen.read == one.size  # the bar counts what was there


def test_a_part_that_is_whole_is_only_hashed(tmp_path: Path) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")
    _broken_off(tmp_path, one, Interrupted("SIGTERM"), one.files[0].size)
    Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert fetch.fetched == ["kernel", "initrd"]


@pytest.mark.parametrize("poison", [b"x" * 1000, b"", b"x" * 4 * 2**20])
def test_a_part_with_other_bytes_is_fetched_from_the_beginning(tmp_path: Path, poison: bytes) -> None:
    one, fetch, seen = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Counting()
    left = _broken_off(tmp_path, one, Interrupted("SIGTERM"), 1000)
    left.write_bytes(poison)
    opened = Store(tmp_path / "c").open(one, {}, seen, fetch)
    assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256 and seen.read == one.size
    assert fetch.fetched == [*(["disk@1000"] if len(poison) == 1000 else []), "disk", "kernel", "initrd"]


def test_a_part_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")
    left, other = _broken_off(tmp_path, one, Interrupted("SIGTERM"), 1000), tmp_path / "other"
    other.write_bytes(b"mine")
    left.unlink()
    left.symlink_to(other)
    Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert other.read_bytes() == b"mine"


def test_a_source_that_changes_meanwhile(tmp_path: Path) -> None:
    """It says so itself: what came before is of no use."""
    one, fetch, tries = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), []

    @Way
    def changing(file: ImageFile, start: int) -> Iterator[bytes]:
        tries.append(start)
        yield from ([b"old bytes"] if len(tries) == 1 else fetch(file, start))
        if len(tries) in failing:
            raise ImageCorrupt("another file now")

    failing = {1, 2}
    with pytest.raises(ImageCorrupt, match="another file now"):
        Store(tmp_path / "c").open(one, {}, QUIET, changing)
    assert tries == [0, 0] and not list((tmp_path / "c/tmp").iterdir())
    failing, tries[:] = {1}, []
    opened = Store(tmp_path / "c").open(one, {}, QUIET, changing)
    assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256


def test_zeros_become_holes(tmp_path: Path) -> None:
    data = bytes(2**20) + b"data" + bytes(3 * 2**20)
    file = ImageFile("disk", "disk", "raw", len(data), hashlib.sha256(data).hexdigest(), len(data))

    @Way
    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        for at in range(start, len(data), 2**16):
            yield data[at:at + 2**16]

    copy.receive_file(file, fetch, tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == data and (tmp_path / "disk").stat().st_blocks * 512 <= 2**17


def test_a_view_of_a_buffer_that_is_filled_anew(tmp_path: Path) -> None:
    buffer, pieces = bytearray(1000), [os.urandom(1000) for _ in range(2000)]
    data = b"".join(pieces)
    file = ImageFile("disk", "disk", "raw", len(data), hashlib.sha256(data).hexdigest(), len(data))

    @Way
    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        for piece in pieces:
            buffer[:] = piece
            yield memoryview(buffer)

    copy.receive_file(file, fetch, tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == data


def test_killed_at_any_instant_nothing_is_lost_or_believed(tmp_path: Path) -> None:
    """Rounds of fetchers that are killed: what is a blob is right, and what is a part is the beginning of one."""
    one, log = image(tmp_path / "i", size=2**21), tmp_path / "log"
    data, chance = {file.sha256: (tmp_path / "i" / file.path).read_bytes() for file in one.files}, random.Random(5)
    slow = Elsewhere(tmp_path / "i", log)

    @Way
    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        for piece in slow(file, start):
            yield piece
            time.sleep(0.002)

    for _ in range(25):
        child = fork.Process(target=Store(tmp_path / "c").open, args=(one, {}, QUIET, fetch))
        child.start()
        time.sleep(chance.random() * 0.06)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for blob in (tmp_path / "c").glob("blobs/sha256/*"):
            assert blob.read_bytes() == data[blob.name]
        for part in (tmp_path / "c").glob("tmp/*"):
            assert data[part.name].startswith(part.read_bytes())
        if chance.random() < 0.1:
            shutil.rmtree(tmp_path / "c")
    opened = Store(tmp_path / "c").open(one, {}, QUIET, slow)
    assert opened.paths["disk"].read_bytes() == data[one.files[0].sha256]
    assert not list((tmp_path / "c/tmp").iterdir())
    assert "@" in log.read_text()  # some went on where others were killed


def test_killed_while_fetching(tmp_path: Path) -> None:
    """The next one takes the lock and fetches the rest."""
    one, fetch = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log")

    @Way
    def slow(file: ImageFile, start: int) -> Iterator[bytes]:
        for number, piece in enumerate(fetch(file, start)):
            yield piece
            if number > 10:
                time.sleep(60)

    child = fork.Process(target=Store(tmp_path / "c").open, args=(one, {}, QUIET, slow))
    child.start()
    while not [part for part in (tmp_path / "c").glob("tmp/*") if part.stat().st_size]:
        time.sleep(0.01)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert not list((tmp_path / "c/tmp").iterdir())
    assert fetch.fetched[1].startswith("disk@")


def test_killed_while_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the copy can be written by whoever fetches the rest."""
    one, fetch, store = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), Store(tmp_path / "c")
    modes, real = [], copy._write

    def written(descriptor: int, data: memoryview, at: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor, data, at)

    monkeypatch.setattr(copy, "_write", written)
    monkeypatch.setattr(copy, "reflink", lambda *_: False)
    copy.copy_file(tmp_path / "i/disk", tmp_path / "copy")
    assert set(modes) == {0o600} and (tmp_path / "copy").stat().st_mode & 0o777 == 0o444
    left = _broken_off(tmp_path, one, Interrupted("SIGTERM"), 1000)
    left.chmod(0o444)  # by a fetch or a copy that was killed before its last step
    modes.clear()
    store.open(one, {}, QUIET, fetch)
    assert set(modes) == {0o600} and "disk@1000" in fetch.fetched


def test_a_part_that_is_a_link_to_the_users_own_file_is_not_written(tmp_path: Path) -> None:
    """Whoever takes a file in as a hard link can be killed before it is verified."""
    one, fetch, mine = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), tmp_path / "mine"
    left = _broken_off(tmp_path, one, Interrupted("SIGTERM"), 1000)
    mine.write_bytes(left.read_bytes())
    mine.chmod(0o640)
    left.unlink()
    os.link(mine, left)
    Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert mine.stat().st_size == 1000 and mine.stat().st_mode & 0o777 == 0o640


def test_a_fetcher_that_is_suspended_is_told_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the image comes for this run alone."""
    one, fetch, notes = image(tmp_path / "i"), Elsewhere(tmp_path / "i", tmp_path / "log"), []
    monkeypatch.setattr(config, "stage_timeout", lambda: 0.5)
    monkeypatch.setattr(locks, "_SOON", 0.01)
    monkeypatch.setattr(QUIET, "note", notes.append)
    (tmp_path / "run").mkdir()
    with Store(tmp_path / "c").blobs._locked(one.files[0].sha256):
        opened = Store(tmp_path / "c").open(one, {}, QUIET, fetch, tmp_path / "run")
        assert opened.paths["disk"].parent == tmp_path / "run"
        with pytest.raises(TimeoutError, match=f"locks/{one.files[0].sha256}"):
            Store(tmp_path / "c").open(one, {}, QUIET, fetch)
    assert f"waits for process {os.getpid()}" in notes[0] and len(notes) == 2
