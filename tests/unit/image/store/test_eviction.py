"""A cache on a node: what goes when there is no more room, what stays, and one that all users read."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.image.store.test_images import QUIET, _run_many, fork, image
from tests.ways import Way
from vmjob.core import config
from vmjob.core.errors import ImageCorrupt, ImageMissing, ImageOutOfReach, Interrupted, JobError, ScratchFull
from vmjob.core.model import Fetcher, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.image.store import check, eviction, inventory, uses
from vmjob.image.store.blobs import Blobs
from vmjob.image.store.images import Store
from vmjob.image.store.stamps import identity
from vmjob.image.store.uses import Uses

pytestmark = pytest.mark.unit

MIB = 2**20


class Elsewhere(Fetcher):
    """Images in folders by name; ``fetched`` tells the paths."""

    def __init__(self, *folders: Path) -> None:
        self.files = {}
        for folder in folders:
            manifest = inventory.manifests.load(folder)
            self.files.update({file.sha256: folder / file.path for file in manifest.files})
        self.fetched: list[str] = []

    def __call__(self, file: ImageFile, start: int) -> Iterator[bytes]:
        self.fetched.append(str(self.files[file.sha256]))
        yield self.files[file.sha256].read_bytes()[start:]


class Hearing(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache on a disk of which little is used, whatever the machine's own is like."""
    monkeypatch.setattr(eviction, "disk_bytes", lambda _: (1000 * MIB, 900 * MIB))
    return tmp_path / "c"


def images(folder: Path, *names: str) -> tuple[list[Manifest], Elsewhere]:
    """Images of a MiB, with a kernel of their own each."""
    made = [image(folder / name, name, MIB, kernel=name.encode()) for name in names]
    return made, Elsewhere(*(folder / name for name in names))


def fill(place: Path, made: list[Manifest], fetch: Elsewhere) -> Store:
    """All of them in the cache, the first was used longest ago."""
    store = Store(place, cache=True)
    for age, one in enumerate(reversed(made)):
        store.open(one, {}, QUIET, fetch)
        then = time.time() - 7200 * (age + 1)
        os.utime(place / f"images/{one.digest[7:]}.yaml", (then, then))
        for file in one.files:
            os.utime(place / "uses" / file.sha256, (then, then))
    return store


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def here(place: Path) -> list[str]:
    return [group.title for group in inventory.survey(Blobs(place)) if group.whole]


def test_the_least_recently_used_goes(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "old", "middle", "new", "coming")
    store = fill(place, made[:3], fetch)
    store.open(made[0], {}, QUIET)  # no longer the oldest
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "3200KiB")
    store.open(made[3], {}, QUIET, fetch)
    assert here(place) == ["new", "old", "coming"]
    assert inventory.used_bytes(place) <= 3200 * 1024
    assert _names(place / "verified") == _names(place / "uses") \
        == {name for group in inventory.survey(store.blobs) for name in group.names}
    fetch.fetched.clear()
    store.open(made[1], {}, QUIET, fetch)
    assert len(fetch.fetched) == 2  # the initrd is everybody's


def test_without_a_limit_a_tenth_of_the_disk_stays_free(place: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "old", "new", "coming")
    store = fill(place, made[:2], fetch)

    def disk(free: int) -> None:
        """So much is free now, less what comes into the cache."""
        before = inventory.used_bytes(place)
        monkeypatch.setattr(eviction, "disk_bytes",
                            lambda _: (1000 * MIB, free - (inventory.used_bytes(place) - before)))

    disk(102 * MIB)
    store.open(made[2], {}, QUIET, fetch)
    assert here(place) == ["old", "new", "coming"]
    disk(100 * MIB)
    eviction.make_room(store.blobs, MIB, QUIET.note)
    assert here(place) == ["new", "coming"]
    disk(50 * MIB)  # others fill it: what was used in the last hour stays
    eviction.make_room(store.blobs, MIB, QUIET.note)
    assert here(place) == ["coming"]
    disk(MIB // 2)  # until there is no room at all
    eviction.make_room(store.blobs, MIB, QUIET.note)
    assert here(place) == []


def test_a_users_own_store_is_never_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "1MiB")
    monkeypatch.setenv("VMJOB_HOME", str(tmp_path / "s"))
    for store in (Store(tmp_path / "s"), Store(tmp_path / "s", cache=True)):
        for one in made:
            store.open(one, {}, QUIET, fetch)
    assert len(fetch.fetched) == 5


def test_what_is_in_use_or_pinned_stays(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "used", "pinned", "idle", "coming")
    store, hearing = fill(place, made[:3], fetch), Hearing()
    inventory.pin(place, made[1], True)
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "2MiB")
    with Store(place, cache=True).hold(made[0]):
        store.open(made[3], {}, hearing, fetch)  # larger than what may be had: it runs all the same
        assert here(place) == ["used", "pinned", "coming"]
        assert len(hearing.notes) == 1 and "over its limit of 2.0 MiB" in hearing.notes[0]
        why = {group.title: why for group, why in eviction.prune(store.blobs).kept}
        assert why == {"used": "in use", "pinned": "pinned"}
    eviction.prune(store.blobs)
    assert here(place) == ["pinned"]
    inventory.pin(place, made[1], False)
    assert eviction.prune(store.blobs).freed > MIB and here(place) == [] and inventory.used_bytes(place) == 0


def test_what_two_images_need_goes_with_the_second(place: Path, tmp_path: Path) -> None:
    base = image(tmp_path / "i/base", "base", MIB, kernel=b"base")
    (tmp_path / "i/other").mkdir()
    other = image(tmp_path / "i/other", "base", MIB, kernel=b"other")  # the same disk
    store = fill(place, [base, other], Elsewhere(tmp_path / "i/base", tmp_path / "i/other"))
    first = eviction.prune(store.blobs, 1)
    assert len(first.removed) == 1 and first.freed < MIB
    store.open(other, {}, QUIET)
    assert eviction.prune(store.blobs).freed >= MIB and not list(place.glob("blobs/sha256/*"))


def test_a_dry_run_changes_nothing(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    store = fill(place, made, fetch)
    before = sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))
    said = eviction.prune(store.blobs, math.inf, dry_run=True)
    assert sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*")) == before
    done = eviction.prune(store.blobs)
    assert [one.title for one in said.removed] == [one.title for one in done.removed] and said.freed == done.freed


def test_parts_and_what_nobody_names_go_too(place: Path, tmp_path: Path) -> None:
    store = Store(place, cache=True)
    store.blobs.derive("abc", lambda path: path.touch(), tmp_path)
    (place / "tmp/123").write_bytes(b"part")
    (place / "verified/gone").touch()
    kinds = [group.kind for group in inventory.survey(store.blobs)]
    assert sorted(kinds) == ["layer", "part"]
    with store.blobs.hold(["123"]):  # somebody fetches it
        assert [group.kind for group in eviction.prune(store.blobs).removed] == ["layer"]
    eviction.prune(store.blobs)
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["prune.lock"]


def test_prune_beside_jobs_that_start(place: Path, tmp_path: Path) -> None:
    """Whatever goes is fetched again: no job fails, and none finds wrong bytes."""
    made, fetch = images(tmp_path / "i", "one", "two")

    def work(number: int) -> None:
        store = Store(place, cache=True)
        for turn in range(25):
            one = made[(number + turn) % 2]
            with store.hold(one):
                opened = store.open(one, {}, QUIET, fetch)
                assert opened.paths["disk"].read_bytes() == (tmp_path / "i" / one.name / "disk").read_bytes()
                assert opened.paths["kernel"].read_bytes() == one.name.encode()

    def prune(number: int) -> None:
        while not (tmp_path / "over").exists():
            eviction.prune(Blobs(place))

    Store(place, cache=True).open(made[0], {}, QUIET, fetch)
    pruner = fork.Process(target=prune, args=(0,))
    pruner.start()
    try:
        assert _run_many(4, work) == [0] * 4
    finally:
        (tmp_path / "over").touch()
        pruner.join(10)
        pruner.kill()
    assert pruner.exitcode == 0


def test_killed_while_it_uses(place: Path, tmp_path: Path) -> None:
    """The kernel lets go of what it held."""
    made, fetch = images(tmp_path / "i", "one")
    store = fill(place, made, fetch)

    def use() -> None:
        with Store(place, cache=True).hold(made[0]):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = fork.Process(target=use)
    child.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    assert not eviction.prune(store.blobs).removed
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert eviction.prune(store.blobs).removed


# ---------------------------------------------------------------- what is made here


def test_derived_once_by_many(place: Path, tmp_path: Path) -> None:
    def work(number: int) -> None:
        def make(path: Path) -> None:
            with (tmp_path / "log").open("a") as log:
                log.write("made\n")
            time.sleep(0.05)
            path.write_bytes(b"layer")

        made = Blobs(place).derive("abc", make, tmp_path)
        assert made == place / "derived/abc" and made.read_bytes() == b"layer"

    assert _run_many(6, work) == [0] * 6
    assert (tmp_path / "log").read_text() == "made\n" and not list((place / "tmp").iterdir())


def test_derived_anew_after_a_boot_or_a_change(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, made = Blobs(place), []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"layer")

    blobs.derive("abc", make, tmp_path)
    (place / "derived/abc").chmod(0o644)
    (place / "derived/abc").write_bytes(b"other")
    assert blobs.derive("abc", make, tmp_path).read_bytes() == b"layer" and len(made) == 2
    monkeypatch.setattr(config, "boot_id", lambda: "another-boot")
    blobs.derive("abc", make, tmp_path)
    blobs.derive("abc", make, tmp_path)
    assert len(made) == 3


def test_derived_where_there_is_room(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        if path.parent.name == "tmp":
            raise ScratchFull("full")
        path.write_bytes(b"layer")

    assert Blobs(tmp_path / "c").derive("abc", make, tmp_path).parent == tmp_path
    (tmp_path / "file").touch()
    assert Blobs(tmp_path / "file/c").derive("abc", lambda path: path.touch(), tmp_path).exists()
    with pytest.raises(ImageCorrupt):
        Blobs(tmp_path / "c").derive("def", _spoilt, tmp_path)
    assert not list((tmp_path / "c/tmp").iterdir()) and not (tmp_path / "d-def").exists()


def _spoilt(path: Path) -> None:
    path.touch()
    raise ImageCorrupt("the layer is spoilt")


def test_held_with_what_is_derived(place: Path, tmp_path: Path) -> None:
    store = Store(place, cache=True)
    made, fetch = images(tmp_path / "i", "one")
    with store.hold(made[0]):
        store.open(made[0], {}, QUIET, fetch)
        store.blobs.derive("abc", lambda path: path.touch(), tmp_path)
        assert not eviction.prune(Blobs(place)).removed
    assert len(eviction.prune(Blobs(place)).removed) == 2


# ---------------------------------------------------------------- looked through


def test_verify_names_and_removes_what_is_wrong(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    store = fill(place, made, fetch)
    poisoned = store.blobs.path(made[0].files[0].sha256)
    poisoned.chmod(0o644)
    with poisoned.open("r+b") as file:
        file.write(b"poison")
    store.blobs.stamps.make(poisoned.name, identity(poisoned))  # and somebody says that it was verified
    assert not check.verify(store.blobs, QUIET, keep=True)[0].removed and poisoned.exists()
    found = check.verify(store.blobs, QUIET)
    assert [(one.path, one.images, one.removed) for one in found] == [(poisoned, ("one",), True)]
    assert not poisoned.exists() and not check.verify(store.blobs, QUIET)
    fetch.fetched.clear()
    store.open(made[0], {}, QUIET, fetch)
    assert fetch.fetched == [str(tmp_path / "i/one/disk")]


def test_a_poisoned_file_without_a_source_is_named(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one")
    store = fill(place, made, fetch)
    poisoned = store.blobs.path(made[0].files[1].sha256)
    poisoned.chmod(0o644)
    poisoned.write_bytes(b"on")
    with pytest.raises(ImageCorrupt, match=str(poisoned)):
        store.open(made[0], {}, QUIET)


def test_found_by_name_or_digest(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    groups = inventory.survey(fill(place, made, fetch).blobs)
    assert inventory.find(groups, "one").manifest == inventory.find(groups, made[0].digest).manifest \
        == inventory.find(groups, made[0].digest[7:15]).manifest == made[0]
    for ref in ("three", made[0].digest[7:10], "", "sha256:"):
        with pytest.raises(ImageMissing):
            inventory.find(groups, ref)


def test_described(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one", "other")
    store = fill(place, made, fetch)
    with Store(place).hold(made[1]):  # it shares a file with the first
        told = check.describe(store.blobs, inventory.survey(store.blobs)[0])
    assert told["verified"] and told["whole"] and not told["in_use"] and not told["pinned"] and told["name"] == "one"
    store.blobs.path(made[0].files[0].sha256).unlink()
    with Store(place).hold(made[0]):
        told = check.describe(store.blobs, inventory.survey(store.blobs)[0])
    assert told["in_use"] and not told["whole"]


# ---------------------------------------------------------------- one for all users


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest]:
    monkeypatch.setenv("VMJOB_SHARED_CACHE", str(tmp_path / "shared"))
    one = image(tmp_path / "i")
    Store(tmp_path / "shared").warm(one, {}, QUIET, Elsewhere(tmp_path / "i"))
    return tmp_path / "shared", one


@Way
def _nothing(file: ImageFile, start: int) -> Iterator[bytes]:
    raise AssertionError(f"{file.role} need not be fetched")


def test_the_shared_cache_is_used_in_place_and_hashed_once(shared: tuple[Path, Manifest], place: Path) -> None:
    folder, one = shared
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    hearing = Hearing()
    for _ in range(2):
        opened = Store(place, cache=True).open(one, {}, hearing, _nothing)
        assert {path.parent for path in opened.paths.values()} == {folder / "blobs/sha256"}
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    assert not list(place.glob("blobs/sha256/*")) and len(list(place.glob("verified-shared/*"))) == 3
    assert not hearing.notes


def test_what_is_used_of_the_shared_cache_is_not_pruned(shared: tuple[Path, Manifest], place: Path) -> None:
    folder, one = shared
    with Store(place, cache=True).hold(one):
        assert [why for _, why in eviction.prune(Blobs(folder)).kept] == ["in use"]
    with Blobs(folder).uses.claim(one.files[0].sha256):  # a user who has the lock stops nobody
        Store(place, cache=True).open(one, {}, QUIET, _nothing)
    assert eviction.prune(Blobs(folder)).removed


@pytest.mark.parametrize("what", ["", "blobs/sha256", "FILE"])
def test_a_shared_cache_that_others_can_write_is_not_used(shared: tuple[Path, Manifest], place: Path, tmp_path: Path,
                                                         what: str) -> None:
    folder, one = shared
    loose = folder / (f"blobs/sha256/{one.files[0].sha256}" if what == "FILE" else what)
    loose.chmod(0o777 if loose.is_dir() else 0o666)
    hearing, fetch = Hearing(), Elsewhere(tmp_path / "i")
    opened = Store(place, cache=True).open(one, {}, hearing, fetch)
    assert opened.paths["disk"] == place / "blobs/sha256" / one.files[0].sha256
    assert len(hearing.notes) == 1 and f"{loose} can be written by others" in hearing.notes[0]


def test_a_shared_file_of_somebody_else_is_not_used(shared: tuple[Path, Manifest], place: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    folder, one = shared
    if os.getuid():
        monkeypatch.setattr(os, "getuid", lambda: 4242)
    else:
        os.chown(folder / "blobs/sha256" / one.files[0].sha256, 4242, -1)
    hearing = Hearing()
    Store(place, cache=True).open(one, {}, hearing, Elsewhere(tmp_path / "i"))
    assert "belongs to user" in hearing.notes[0]


def test_a_poisoned_shared_file_is_named_and_not_used(shared: tuple[Path, Manifest], place: Path,
                                                      tmp_path: Path) -> None:
    folder, one = shared
    spoilt = folder / "blobs/sha256" / one.files[0].sha256
    spoilt.chmod(0o644)
    with spoilt.open("r+b") as file:
        file.write(b"poison")
    hearing = Hearing()
    opened = Store(place, cache=True).open(one, {}, hearing, Elsewhere(tmp_path / "i"))
    assert opened.paths["disk"].parent == place / "blobs/sha256"
    assert opened.paths["kernel"].parent == folder / "blobs/sha256"
    assert str(spoilt) in hearing.notes[0]


def test_a_run_that_waits_for_a_lock_can_be_interrupted(place: Path, tmp_path: Path) -> None:
    """A signal that raises ends the wait."""
    made, fetch = images(tmp_path / "i", "one")
    store = fill(place, made, fetch)
    store.blobs.stamps.drop(made[0].files[0].sha256)

    def interrupt(*_: object) -> None:
        raise Interrupted("now")

    before = signal.signal(signal.SIGUSR1, interrupt)
    with Blobs(place)._locked(made[0].files[0].sha256):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            store.open(made[0], {}, QUIET)
    signal.signal(signal.SIGUSR1, before)


def test_who_comes_while_it_is_evicted_does_not_hold_what_is_gone(place: Path) -> None:
    users, locks = Uses(place), []
    thread = threading.Thread(target=lambda: locks.append(users.take("abc")))
    with users.claim("abc") as ours:
        assert ours
        thread.start()
        time.sleep(0.05)  # it waits for the lock by now
        users.forget("abc")
    thread.join(10)
    assert not users.free("abc") and users.last("abc")
    users.leave(locks[0])
    assert users.free("abc")


# ---------------------------------------------------------------- who means harm, and who is only slow


@pytest.mark.parametrize("spelled", ["link", "s/../s", "s/names/.."])
def test_a_users_own_store_is_no_cache_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            spelled: str) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "1MiB")
    monkeypatch.setenv("VMJOB_HOME", "s")  # as seen from here
    monkeypatch.chdir(tmp_path)
    Store(tmp_path / "s").open(made[0], {}, QUIET, fetch)
    if "names" in spelled:
        (tmp_path / "s/names").mkdir()
        monkeypatch.setenv("VMJOB_HOME", "elsewhere")
    (tmp_path / "link").symlink_to("s")
    Store(tmp_path / spelled, cache=True).open(made[1], {}, QUIET, fetch)
    eviction.make_room(Blobs(tmp_path / spelled), MIB, QUIET.note)
    with pytest.raises(JobError, match="a store of images"):
        eviction.prune(Blobs(tmp_path / spelled))
    assert len(list((tmp_path / "s/blobs/sha256").iterdir())) == 5


def test_verify_leaves_what_is_made_meanwhile(place: Path, tmp_path: Path) -> None:
    """It judges what it removes, not what was there before."""
    blobs, begun, end = Blobs(place), threading.Event(), threading.Event()
    blobs.derive("abc", lambda path: path.touch(), None)
    blobs.stamps.drop("d-abc")  # the host booted

    def make(path: Path) -> None:
        path.write_bytes(b"new")
        begun.set()
        end.wait(10)

    job = threading.Thread(target=lambda: Blobs(place).derive("abc", make, None))
    job.start()
    assert begun.wait(10)
    threading.Timer(0.05, end.set).start()  # verify waits by then, or has judged
    assert not check.verify(blobs, QUIET)
    job.join()
    assert (place / "derived/abc").read_bytes() == b"new"


def test_verify_does_not_let_go_of_what_a_job_holds(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one")
    store, digits = fill(place, made, fetch), made[0].files[0].sha256
    with Store(place, cache=True).hold(made[0]):
        store.blobs.path(digits).chmod(0o644)
        store.blobs.path(digits).write_bytes(b"poison")
        assert check.verify(store.blobs, QUIET)[0].in_use
        store.open(made[0], {}, QUIET, fetch)
        assert not store.blobs.uses.free(digits)  # it is in use all the while


def test_for_a_size_that_can_never_be_had_nothing_goes(place: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "one")
    store = fill(place, made, fetch)
    eviction.make_room(store.blobs, 2000 * MIB, QUIET.note)
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "3MiB")
    eviction.make_room(store.blobs, 4 * MIB, QUIET.note)
    assert here(place) == ["one"]
    eviction.make_room(store.blobs, 2 * MIB, QUIET.note)
    assert here(place) == []


def test_the_limit_holds_when_many_come_at_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "slow", "quick")
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "1500KiB")

    @Way
    def slow(file: ImageFile, start: int) -> Iterator[bytes]:
        if file.role == "kernel":  # another comes after room was made for this one
            Store(place, cache=True).open(made[1], {}, QUIET, fetch)
        yield from fetch(file, start)

    Store(place, cache=True).open(made[0], {}, QUIET, slow)
    assert inventory.used_bytes(place) <= 1500 * 1024 and here(place) == ["slow"]


def test_nobody_else_can_take_the_locks(place: Path, tmp_path: Path) -> None:
    made, fetch = images(tmp_path / "i", "one")
    store = fill(place, made, fetch)
    (place / "prune.lock").touch(0o644)
    loose = place / "locks" / made[0].files[0].sha256
    loose.chmod(0o644)
    with store.blobs._locked(loose.name), store.hold(made[0]):
        eviction.prune(store.blobs)
    modes = {path.stat().st_mode & 0o777 for path in (*(place / "locks").iterdir(), place / "prune.lock")}
    assert modes == {0o600}


def test_a_lock_that_is_held_for_ever(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fetch = images(tmp_path / "i", "one", "two")
    store = fill(place, made[:1], fetch)
    place.chmod(0o700)  # where nobody but this user can have it
    monkeypatch.setattr(uses, "_PATIENCE", 0.01)
    monkeypatch.setattr(eviction, "_PATIENCE", 0.01)
    with store.blobs.uses.claim(made[0].files[0].sha256), \
            pytest.raises(ImageOutOfReach, match=r"uses/.* has had this lock"):
        store.open(made[0], {}, QUIET)
    monkeypatch.setenv("VMJOB_CACHE_LIMIT", "1500KiB")
    with eviction._alone(place):
        store.open(made[1], {}, QUIET, fetch)  # without room made
        with pytest.raises(TimeoutError, match=r"prune\.lock"):
            eviction.prune(store.blobs)
    assert here(place) == ["one", "two"]
