"""Other users of a node, in the folders that all write to: they hold nobody up and change nobody's files.

Where a test needs a second user it runs as root, who can play any."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from vmjob import config, locks, ownway, process, runs
from vmjob.errors import JobError, VmjobError
from vmjob.image import subscriptions, uses
from vmjob.slot import scratch
from vmjob.stage import commands
from vmjob.vm import probe

pytestmark = pytest.mark.unit

NEIGHBOUR, VICTIM = 52001, 52002
DIGEST = "ab" * 32
needs_users = pytest.mark.skipif(os.getuid() != 0, reason="plays other users: runs as root")


def as_user(uid: int, what: Callable[[], object]) -> None:
    """Done by a process of that user, which must end well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.umask(0)
            what()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that all users reach, and write to as to /tmp."""
    for step in (tmp_path, *tmp_path.parents):
        if step.stat().st_uid == os.getuid() and step.name.startswith("pytest"):
            step.chmod(0o755)
    tmp_path.chmod(0o755)
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o1777)
    return place


# ---------------------------------------------------------------- pipes and files in the folder of runs


def test_a_pipe_in_the_folder_of_runs_holds_nobody(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack runs_fifo."""
    monkeypatch.setenv("VMJOB_RUNS", str(shared))
    monkeypatch.setenv("VMJOB_NODE_CACHE", str(shared / "cache"))
    pipe = shared / f"image-{os.getuid()}-{DIGEST}"
    os.mkfifo(pipe, 0o666)
    cache = shared / "cache/uid"
    with runs.registered(f"sha256:{DIGEST}", cache):  # nobody reads it
        assert len(list(shared.glob("run-*"))) == 1
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    before = pipe.stat().st_mtime_ns
    with runs.registered(f"sha256:{DIGEST}", cache):
        assert pipe.stat().st_mtime_ns == before
    os.close(reader)
    assert not list(shared.glob("run-*"))


@needs_users
def test_a_neighbours_file_is_not_taken_for_ones_own(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMJOB_RUNS", str(shared))
    monkeypatch.setenv("VMJOB_NODE_CACHE", str(shared / "cache"))
    name = shared / f"image-{VICTIM}-{DIGEST}"

    def plant() -> None:
        name.write_text("")
        os.utime(name, (0, 0))

    def run() -> None:
        with runs.registered(f"sha256:{DIGEST}", shared / "cache/uid"):
            pass

    as_user(NEIGHBOUR, plant)
    as_user(VICTIM, run)
    assert name.stat().st_mtime == 0
    assert runs.survey(shared, time.time()).images == ()


# ---------------------------------------------------------------- locks


def test_a_lock_lies_in_a_file_that_nobody_else_may_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch(0o644)
    path.chmod(0o666)
    with locks.held(path, 1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PermissionError, match="no file"):
        locks.open_own(path)
    path.unlink()
    (tmp_path / "other").touch()
    path.symlink_to("other")
    with pytest.raises(OSError, match="symbolic links"):
        locks.open_own(path)


def test_a_lock_is_waited_for_only_so_long(tmp_path: Path) -> None:
    path, said = tmp_path / "lock", list[str]()
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="a suspended one") as late, locks.held(path, 0.05, note=said.append):
            pass
    assert late.value.filename == str(path)
    with locks.held(path, 0):
        pass


@needs_users
def test_nobody_holds_roots_lock_of_the_lists(shared: Path) -> None:
    """Attack lists_lock."""
    folder = shared.parent / "lists"
    with subscriptions._locked(folder):
        pass

    def take() -> None:
        with pytest.raises(PermissionError):
            os.open(folder / "lock", os.O_RDONLY)

    as_user(NEIGHBOUR, take)
    assert stat.S_IMODE((folder / "lock").stat().st_mode) == 0o600


@needs_users
def test_a_lock_of_another_is_none_of_ours(shared: Path) -> None:
    as_user(NEIGHBOUR, lambda: (shared / "lock").touch(0o666))
    with pytest.raises(PermissionError):  # by us, or by a kernel with fs.protected_regular
        locks.open_own(shared / "lock")


@needs_users
def test_nobody_holds_up_the_admin_of_a_shared_cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_PATIENCE", 0.05)
    cache = shared.parent / "images"
    cache.mkdir(0o755)
    mine = uses.Uses(cache / "uses")
    first = mine.take("name")
    assert first is not None
    mine.leave(first)
    ready, told = os.pipe()

    def hold() -> None:
        lock = os.open(cache / "uses/name", os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(told, b"x")
        signal.pause()

    child = os.fork()
    if child == 0:
        try:
            os.setgid(NEIGHBOUR)
            os.setuid(NEIGHBOUR)
            hold()
        finally:
            os._exit(1)
    try:
        os.read(ready, 1)
        taken = mine.take("name")
        assert taken is not None
        mine.leave(taken)
        cache.chmod(0o700)
        with (cache / "uses/name").open() as other:  # a cache of one's own: a sibling, which is named
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError, match="uses/name"):
                mine.take("name")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_suspended_probe_holds_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack suspended_sibling."""
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_PATIENCE", 0.05)
    config.cache_dir()
    with (tmp_path / "cache/probe.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert probe._cached("key", "what", lambda: {"found": 1}) == {"found": 1}
        with monkeypatch.context() as patience:  # what was found is kept, so that only the first run waits
            patience.setattr(probe, "_PATIENCE", 1000)
            assert probe._cached("key", "what", lambda: {"found": 2}) == {"found": 1}


# ---------------------------------------------------------------- what dead runs left


@needs_users
def test_only_ones_own_is_swept(shared: Path) -> None:
    def leave() -> None:
        for name in ("vmjob-stage-dead", "vmjob-run-dead"):
            (shared / name).mkdir(0o777)
            (shared / name / "lock").touch(0o666)
            (shared / name / "data").touch(0o666)

    as_user(NEIGHBOUR, leave)
    commands._sweep(shared)
    assert scratch.sweep(shared) == []
    assert sorted(path.name for path in shared.iterdir()) == ["vmjob-run-dead", "vmjob-stage-dead"]
    assert (shared / "vmjob-stage-dead/data").exists()
    as_user(NEIGHBOUR, lambda: commands._sweep(shared))
    assert not (shared / "vmjob-stage-dead").exists()


def test_a_link_or_a_pipe_is_not_swept_through(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/lock").touch()
    (tmp_path / "vmjob-stage-link").symlink_to("mine")
    (tmp_path / "vmjob-stage-pipe").mkdir()
    os.mkfifo(tmp_path / "vmjob-stage-pipe/lock")
    commands._sweep(tmp_path)
    assert (tmp_path / "mine/lock").exists() and (tmp_path / "vmjob-stage-pipe/lock").exists()


# ---------------------------------------------------------------- the way to the cache


def test_a_way_that_others_cannot_change(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    assert ownway.flaw(tmp_path / "a/b") == "" and ownway.flaw(tmp_path / "a/none/none") == ""
    (tmp_path / "link").symlink_to("a/../a/b")
    assert ownway.flaw(tmp_path / "link/..") == ""
    (tmp_path / "a").chmod(0o777)
    for place in ("a", "a/b", "link", "a/none"):
        assert ownway.flaw(tmp_path / place) == f"{tmp_path}/a can be written by everybody"
    (tmp_path / "a").chmod(0o1777)
    assert ownway.flaw(tmp_path / "a/b") == ""
    (tmp_path / "loop").symlink_to("loop")
    assert "too many symbolic links" in ownway.flaw(tmp_path / "loop")


@needs_users
def test_a_neighbours_folder_on_the_way_is_a_flaw(shared: Path) -> None:
    def plant() -> None:
        (shared / "theirs").mkdir(0o755)
        (shared / "theirs/deep").mkdir(0o777)
        (shared / "link").symlink_to("/var/tmp")

    as_user(NEIGHBOUR, plant)
    as_user(VICTIM, lambda: (shared / "theirs/deep/mine").mkdir(0o700))
    for uid in (0, VICTIM):
        def look() -> None:
            assert ownway.flaw(shared / "theirs/deep/mine") == f"{shared}/theirs belongs to uid {NEIGHBOUR}"
            assert "belongs to" in ownway.flaw(shared / "link/x")
        as_user(uid, look)
    (shared / "daemon").mkdir()  # as HTCondor's, which has the slots in it
    os.chown(shared / "daemon", 101, 101)
    assert "daemon belongs to" in ownway.flaw(shared / "daemon/x")
    shared.chmod(0o755)
    assert ownway.flaw(shared / "daemon/x") == ""
    (shared / "team").mkdir()
    os.chown(shared / "team", 0, NEIGHBOUR)
    (shared / "team").chmod(0o775)
    assert ownway.flaw(shared / "team/x") == f"{shared}/team can be written by its group"


@pytest.fixture
def homeless(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No home, and ``shared`` in the place of /var/tmp."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "VMJOB_CACHE", "VMJOB_NODE_CACHE",
                 "VMJOB_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "SPARE", shared)

    def none() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", none)
    return shared


def test_an_account_without_a_home(homeless: Path) -> None:
    place = config.cache_dir()
    assert place == homeless / f"vmjob-{os.getuid()}/.cache/vmjob" and place.is_dir()
    assert stat.S_IMODE((homeless / f"vmjob-{os.getuid()}").stat().st_mode) == 0o700
    assert config.store_dir().parent.parent.parent == config.settings_dir().parent.parent == place.parent.parent


@needs_users
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_neighbour_who_took_the_name_of_the_cache_gets_nothing(homeless: Path, kind: str) -> None:
    """Attack cache_parent."""
    taken = homeless / f"vmjob-{VICTIM}"

    def plant() -> None:
        if kind == "folder":
            taken.mkdir(0o777)
        elif kind == "link":
            (homeless / "evil").mkdir(0o777)
            taken.symlink_to("evil")
        else:
            taken.touch(0o666)

    def look() -> None:
        place = config.cache_dir()
        assert taken not in (place, *place.parents) and place.stat().st_uid == VICTIM and not ownway.flaw(place)
        assert place == config.cache_dir()  # the next slot of this user finds it
        assert taken not in config.store_dir().parents
        (place / "blob").write_text("verified")

    as_user(NEIGHBOUR, plant)
    as_user(VICTIM, look)

    def swap() -> None:
        for found in homeless.glob(f"vmjob-{VICTIM}-*"):
            with pytest.raises(PermissionError):
                found.rename(homeless / "gone")
            with pytest.raises(PermissionError):
                (found / ".cache").rename(found / ".old")

    as_user(NEIGHBOUR, swap)
    assert not list((homeless / "evil").glob("*")) if kind == "link" else True


def test_a_folder_that_others_can_change_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "VMJOB_CACHE", "VMJOB_NODE_CACHE", "VMJOB_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(config, "SPARE", tmp_path / "none")
    place = config.cache_dir()
    assert place == config.NOWHERE and not place.exists()
    for ask in (config.store_dir, config.settings_dir):
        with pytest.raises(JobError, match="home can be written by everybody"):
            ask()
    assert config.own_store() == config.NOWHERE  # a job needs none
    monkeypatch.setenv("VMJOB_CACHE", str(tmp_path / "home/own"))
    with pytest.raises(VmjobError, match="others could change what is there"):
        config.cache_dir()
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    monkeypatch.delenv("VMJOB_CACHE")
    old = os.umask(0)
    try:
        assert config.cache_dir() == tmp_path / "new/.cache/vmjob"
        assert {stat.S_IMODE(step.stat().st_mode) for step in (tmp_path / "new", tmp_path / "new/.cache")} == {0o700}
    finally:
        os.umask(old)


# ---------------------------------------------------------------- what a crash leaves


def test_no_program_leaves_its_memory_in_a_core_dump() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        said = process.run(["cat", "/proc/self/limits", "/proc/self/coredump_filter"]).stdout.decode()
        child = process.spawn(["sleep", "60"])
        try:
            seen = [Path(f"/proc/{child.pid}/{name}").read_text() for name in ("limits", "coredump_filter")]
        finally:
            child.kill()
            child.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    for text in (said, "\n".join(seen)):
        (limit,) = [line.split() for line in text.split("\n") if line.startswith("Max core file size")]
        assert limit[4:6] == ["0", "0"] and int(text.strip().rpartition("\n")[2], 16) == 0
