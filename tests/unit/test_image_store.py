"""The content-addressed store: many processes, kills, spoilt bytes."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmjob import config
from vmjob.errors import ImageCorrupt, ImageError, ImageMissing, Interrupted, ScratchFull
from vmjob.files import hash_file
from vmjob.image import importer, manifest, transfer
from vmjob.image import store as store_module
from vmjob.image.blobs import Blobs
from vmjob.image.stamps import Stamps
from vmjob.image.store import Store
from vmjob.image.transfer import copy_file
from vmjob.model import Boot, ImageFile, Manifest
from vmjob.progress import Bar, Reporter

pytestmark = pytest.mark.unit

QUIET = Reporter()
fork = multiprocessing.get_context("fork")


class Counting(Reporter):
    """How many bytes were read to verify them."""

    def __init__(self) -> None:
        self.read = 0.0

    def bar(self, name: str, total: Any, unit: str = "B") -> Bar:
        outer = self

        class Counter(Bar):
            def advance(self, amount: float) -> None:
                outer.read += amount

        return Counter()


def image(folder: Path, name: str = "one", size: int = 3 * 2**20, kernel: bytes = b"kernel") -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"disk": (name.encode() * size)[:size], "kernel": kernel, "initrd": b"initrd"}
    files = []
    for role, form in (("disk", "raw"), ("kernel", "bzimage"), ("initrd", "cpio")):
        (folder / role).write_bytes(contents[role])
        digest = hashlib.sha256(contents[role]).hexdigest()
        files.append(ImageFile(role, role, form, len(contents[role]), digest,
                               len(contents[role]) if role == "disk" else 0))
    made = Manifest(name, tuple(files), (Boot.JOB,))
    (folder / "manifest.yaml").write_text(manifest.dump(made))
    return made


def sources(folder: Path) -> dict[str, Path]:
    return {role: folder / role for role in ("disk", "kernel", "initrd")}


def test_add_find_open_remove(tmp_path: Path) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    store.add(one, tmp_path / "i")
    assert store.find("one") == store.find(one.digest) == store.find(one.digest[7:15]) == one
    assert store.list() == [one]
    opened = store.open(one, {}, QUIET)
    assert opened.paths["disk"].read_bytes() == (tmp_path / "i/disk").read_bytes()
    store.remove("one")
    assert store.list() == [] and not list((tmp_path / "s/blobs/sha256").iterdir()) and not store.names()


def test_what_the_user_does_to_her_files_later_does_no_harm(tmp_path: Path) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    store.add(one, tmp_path / "i")
    with (tmp_path / "i/disk").open("r+b") as file:
        file.write(b"changed in place")
    Store(tmp_path / "s").open(one, {}, QUIET)


def test_blobs_shared_by_two_images_stay(tmp_path: Path) -> None:
    store, one, two = Store(tmp_path / "s"), image(tmp_path / "1"), image(tmp_path / "2", "two")
    store.add(one, tmp_path / "1")
    store.add(two, tmp_path / "2")
    assert len(list((tmp_path / "s/blobs/sha256").iterdir())) == 4  # two disks, one kernel, one initrd
    store.remove("one")
    store.open(two, {}, QUIET)
    with pytest.raises(ImageMissing):
        store.open(one, {}, QUIET)


def test_missing_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(ImageMissing) as caught:
        store.find("micro")
    assert "vmjob image micro" in caught.value.hint
    store.add(image(tmp_path / "i", "pythia"), tmp_path / "i")
    with pytest.raises(ImageMissing) as caught:
        store.find("phytia")
    assert "pythia" in caught.value.hint
    for ref in ("../names/pythia", "sha256:" + "0" * 64, "", ".", "a/b"):
        with pytest.raises(ImageMissing):
            store.resolve(ref)


def test_resolve_takes_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    for ref in (str(tmp_path / "i"), str(tmp_path / "i/manifest.yaml")):
        assert store.resolve(ref) == (one, sources(tmp_path / "i"))
    monkeypatch.chdir(tmp_path)
    assert store.resolve("i")[0] == one
    with pytest.raises(ImageMissing) as caught:
        store.resolve("./i/disk")
    assert "vmjob image import" in caught.value.hint


def test_node_cache_reads_once_per_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, one, seen = Store(tmp_path / "c"), image(tmp_path / "i"), Counting()
    cache.open(one, sources(tmp_path / "i"), seen)
    assert seen.read == one.size
    # the job's folder goes away, which moves the change time of hard links; the next job brings its own copy
    for name in ("disk", "kernel", "initrd"):
        (tmp_path / "i" / name).unlink()
    image(tmp_path / "j")
    opened = cache.open(one, sources(tmp_path / "j"), seen)
    assert seen.read == one.size
    assert all(path.is_relative_to(tmp_path / "c") for path in opened.paths.values())
    monkeypatch.setattr(config, "boot_id", lambda: "another boot")
    cache.open(one, {}, seen)
    assert seen.read == 2 * one.size


def test_payload_is_linked_not_copied(tmp_path: Path) -> None:
    one = image(tmp_path / "i")
    opened = Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET)
    assert opened.paths["disk"].samefile(tmp_path / "i/disk")


def test_wrong_bytes_are_named(tmp_path: Path) -> None:
    one, spoilt = image(tmp_path / "i"), b"x" * (3 * 2**20)
    (tmp_path / "i/disk").write_bytes(spoilt)
    with pytest.raises(ImageCorrupt) as caught:
        Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET)
    for part in (str(tmp_path / "i/disk"), one.files[0].sha256, hashlib.sha256(spoilt).hexdigest()):
        assert part in caught.value.message
    assert not list((tmp_path / "c/tmp").iterdir()) and not (tmp_path / "c/blobs/sha256" / one.files[0].sha256).exists()
    (tmp_path / "i/disk").write_bytes(b"short")
    with pytest.raises(ImageCorrupt, match="5 bytes, but the manifest says 3145728"):
        Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET)


def test_spoilt_blob_is_noticed_and_mended_by_a_good_source(tmp_path: Path) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    store.add(one, tmp_path / "i")
    blob = store.blobs.path(one.files[0].sha256)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"spoilt")
    with pytest.raises(ImageCorrupt, match=one.files[0].sha256):
        store.open(one, {}, QUIET)
    store.open(one, sources(tmp_path / "i"), QUIET)
    store.open(one, {}, QUIET)


def test_read_only_store_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(30, "read-only")

    def only_reading(path: Path, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return really(path, flags, *more, **named)

    really = os.open
    store.add(one, tmp_path / "i")
    for stamp in (tmp_path / "s/verified").iterdir():
        stamp.unlink()
    with monkeypatch.context() as patch:
        for target in ("mkdir", "write_text", "replace", "touch"):
            patch.setattr(Path, target, refuse)
        patch.setattr(os, "open", only_reading)
        seen = Counting()
        assert store.open(one, {}, seen).paths["disk"].exists() and seen.read == one.size
        # and an empty one that cannot be filled uses the payload in place
        opened = Store(tmp_path / "none").open(one, sources(tmp_path / "i"), seen)
        assert opened.paths == sources(tmp_path / "i") and seen.read == 2 * one.size


def _run_many(number: int, work: Callable[[int], None]) -> list[int]:
    children = [fork.Process(target=work, args=(n,)) for n in range(number)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]  # type: ignore[misc]


def test_eight_processes_hash_once(tmp_path: Path) -> None:
    one, log = image(tmp_path / "i", size=40 * 2**20), tmp_path / "log"

    def work(number: int) -> None:
        seen = Counting()
        opened = Store(tmp_path / "c").open(one, sources(tmp_path / "i"), seen)
        assert hash_file(opened.paths["disk"])[0] == one.files[0].sha256
        with log.open("a") as file:
            file.write(f"{int(seen.read)}\n")

    assert _run_many(8, work) == [0] * 8
    assert sum(map(int, log.read_text().split())) == one.size
    assert len(list((tmp_path / "c/blobs/sha256").iterdir())) == 3


def test_kill_at_any_instant_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    one, store = image(tmp_path / "i", size=24 * 2**20), Store(tmp_path / "s")
    for n in range(25):
        child = fork.Process(target=store.add, args=(one, tmp_path / "i"))
        child.start()
        time.sleep(0.002 + n * 0.003)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for blob in (tmp_path / "s/blobs/sha256").glob("*"):
            assert hash_file(blob)[0] == blob.name
        if "one" in store.names():
            assert store.find("one") == one
            store.open(one, {}, QUIET)
            store.remove("one")
    store.add(one, tmp_path / "i")
    store.open(one, {}, QUIET)
    assert not list((tmp_path / "s/tmp").iterdir())


def test_somebody_elses_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = image(tmp_path / "i")
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    opened = Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET)
    assert not opened.paths["disk"].samefile(tmp_path / "i/disk")


@pytest.mark.parametrize("times", [1, 99])
def test_change_while_hashing_is_hashed_again_and_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              times: int) -> None:
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    store.add(one, tmp_path / "i")
    digits, hashed = one.files[0].sha256, []
    (tmp_path / "s/verified" / digits).unlink()
    real = transfer.hash_file

    def slow(path: Path, bar: Any = None) -> tuple[str, int]:
        found = real(path, bar)
        hashed.append(path)
        if len(hashed) <= times:
            os.utime(path, ns=(1, len(hashed)))
        return found

    monkeypatch.setattr(transfer, "hash_file", slow)
    with pytest.raises(ImageCorrupt, match="changes while") if times > 1 else contextlib.nullcontext():
        assert Blobs(tmp_path / "s").check(digits, one.files[0].size)
    assert len(hashed) == 2 and (tmp_path / "s/verified" / digits).exists() == (times == 1)


def test_a_stamp_is_of_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what the file is by the time that it is written."""
    store, one = Store(tmp_path / "s"), image(tmp_path / "i")
    store.add(one, tmp_path / "i")
    digits, make = one.files[0].sha256, Stamps.make
    (tmp_path / "s/verified" / digits).unlink()

    def late(self: Stamps, name: str, *seen: Any) -> None:
        os.utime(store.blobs.path(name), ns=(1, 1))  # somebody writes to it just now
        make(self, name, *seen)

    monkeypatch.setattr(Stamps, "make", late)
    store.blobs.check(digits, one.files[0].size)
    assert not store.blobs.stamps.hold(digits, store.blobs.path(digits))


def test_a_link_that_its_owner_writes_to_is_not_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, real = image(tmp_path / "i"), Path.replace

    def late(path: Path, target: Path) -> Path:
        if path.parent.name == "tmp":
            os.utime(path, ns=(1, 1))
        return real(path, target)

    monkeypatch.setattr(Path, "replace", late)
    with pytest.raises(ImageCorrupt, match="changed while"):
        Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET)
    assert not list((tmp_path / "c").glob("verified/*"))


def test_without_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To send an image away its layers are verified, not unpacked."""
    one = image(tmp_path / "i")

    def never(*_: Any) -> None:
        raise AssertionError("layers are unpacked")

    monkeypatch.setattr(store_module, "chain", never)
    opened = Store(tmp_path / "c").open(one, sources(tmp_path / "i"), QUIET, layered=False)
    assert opened.chain == (opened.paths["disk"],)


def test_nothing_is_derived_without_a_place_of_ones_own(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        raise ScratchFull(str(path))

    with pytest.raises(ScratchFull):
        Blobs(tmp_path / "c").derive("abc", make, None)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be locked"):
        Blobs(tmp_path / "file/c").derive("abc", make, None)


def test_a_copy_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = image(tmp_path / "i")

    def stopped(*_: Any) -> None:
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(transfer, "_write", stopped)
    monkeypatch.setattr(transfer, "reflink", lambda *_: False)
    with pytest.raises(Interrupted):
        Store(tmp_path / "s").add(one, tmp_path / "i")
    assert not list((tmp_path / "s/tmp").iterdir())


@pytest.mark.parametrize("size", [0, 1, 2**21 - 1, 2**21, 2**21 + 1, 3 * 2**21])
def test_hash_and_copy_at_the_edges_of_chunks(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    expected = (hashlib.sha256(data).hexdigest(), size)
    assert hash_file(tmp_path / "a") == copy_file(tmp_path / "a", tmp_path / "b") == expected
    assert (tmp_path / "b").read_bytes() == data


def test_copy_keeps_holes(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.seek(2**26)
        file.write(b"end")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").stat().st_size == 2**26 + 3 and (tmp_path / "b").stat().st_blocks * 512 < 2**22
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")


def test_import_packs_a_raw_disk_and_keeps_others(tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed: apt-get install qemu-utils")
    disk, store = bytearray(4 * 2**20), Store(tmp_path / "s")
    disk[:3], disk[510:512] = b"\xeb\x63\x90", b"\x55\xaa"
    disk[446:462] = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 99, 0, 0, 0])
    (tmp_path / "d.img").write_bytes(disk)
    made = importer.import_disk(tmp_path / "d.img", "mine", store, user="root")
    assert (made.boot, made.firmware, made.user, made.files[0].format) == ((Boot.DISK,), "bios", "root", "qcow2")
    packed = store.open(store.find("mine"), {}, QUIET).paths["disk"]
    assert packed.stat().st_size < 2**20
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", packed, tmp_path / "raw"], check=True)
    assert (tmp_path / "raw").read_bytes() == disk
    again = importer.import_disk(packed, "again", store)
    assert again.files[0].sha256 == made.files[0].sha256
    assert sorted(path.name for path in (tmp_path / "s").glob(".import-*")) == []
    with pytest.raises(ImageError):
        importer.import_disk(tmp_path / "d.img", "no/name", store)
