"""The cache with real QEMU, real users and real disks that are full or read-only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import Cli, qemus, result_of
from tests.images import need
from tests.ways import Way
from vmjob.core.files import hash_file
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.image import manifest as manifests
from vmjob.image.store.images import Store
from vmjob.vm import disks

pytestmark = pytest.mark.integration

VMJOB = f"{sys.executable} -m vmjob"
fork = multiprocessing.get_context("fork")


@pytest.fixture
def micro(cli: Cli) -> Path:
    """The micro image as a folder with a manifest."""
    store, folder = Store(cli.home / "store"), cli.cwd / "micro"
    found, paths = store.resolve("micro")
    folder.mkdir()
    for file in found.files:
        shutil.copyfile(paths[file.role], folder / file.path)
    (folder / "manifest.yaml").write_text(manifests.dump(found))
    return folder


def run(cli: Cli, image: Path, cache: Path, *more: str) -> list[str]:
    return ["env", f"VMJOB_CACHE={cache}", *VMJOB.split(), "run", "--image", str(image), "--network", "none", *more]


def in_small_disk(cli: Cli, mount: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """``words`` where cwd/disk is a file system of its own, in namespaces that end with them."""
    (cli.cwd / "disk").mkdir()
    (cli.cwd / "scratch").mkdir(exist_ok=True)
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc"]
    if not shutil.which("unshare") or subprocess.run([*shell, "mount -t tmpfs none /mnt"],
                                                     capture_output=True).returncode:
        pytest.skip("needs user namespaces: apt-get install util-linux; sysctl kernel.unprivileged_userns_clone=1")
    return subprocess.run([*shell, f'{mount}; exec "$@"', "sh", *words], cwd=cli.cwd, env=cli.environment(),
                          capture_output=True, text=True, timeout=60)


FULL = "mount -t tmpfs -o size=6m none disk; head -c 5m /dev/zero > disk/other"
READ_ONLY = "mount -t tmpfs none disk; mount -o remount,ro disk"


@pytest.mark.parametrize(("mount", "way"), [(FULL, "fetched"), (READ_ONLY, "in place")], ids=["full", "read-only"])
def test_a_cache_that_keeps_nothing_stops_nobody(cli: Cli, micro: Path, mount: str, way: str) -> None:
    image = micro
    if way == "fetched":
        image = cli.cwd / "manifest.yaml"
        text = (micro / "manifest.yaml").read_text().replace("sources: []", f"sources: ['file://{micro}/']")
        image.write_text(text)
        assert str(micro) in text
    done = in_small_disk(cli, mount, run(cli, image, cli.cwd / "disk", "--results", "res", "--", "sh", "-c", "exit 7"))
    assert done.returncode == 7, done.stderr
    assert result_of(cli.cwd / "res")["exit_status"] == 7 and not cli.left_over()


def test_warming_a_full_cache_is_refused(cli: Cli, micro: Path) -> None:
    done = in_small_disk(cli, FULL, ["env", f"VMJOB_CACHE={cli.cwd / 'disk'}", *VMJOB.split(), "image", "cache", "warm",
                                     str(micro)])
    assert done.returncode == 222 and "no space" in done.stderr and "→" in done.stderr


def guests() -> set[int]:
    """QEMUs that run a guest, and not those that are asked what they can do: these end at any moment."""
    found = set()
    for pid in qemus():
        with contextlib.suppress(OSError):
            if "/vmjob-run-" in str(Path(f"/proc/{pid}/cwd").readlink()):
                found.add(pid)
    return found


def test_a_started_image_is_never_evicted(cli: Cli, micro: Path) -> None:
    cache = {"VMJOB_CACHE": str(cli.cwd / "cache")}
    before = guests()
    started = cli.start("run", "--image", micro, "--network", "none", "--", "sh", "-c", "sleep 1; exit 7", env=cache)
    try:
        while not (frozen := guests() - before):
            assert started.poll() is None
            time.sleep(0.05)
        for pid in frozen:  # it does not end before we have looked
            os.kill(pid, signal.SIGSTOP)
        try:
            told = cli("image", "cache", "prune", "--all", "--json", env=cache).json
            listed = cli("image", "cache", "list", "--json", env=cache).json["entries"]
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert [(one["name"], one["why"]) for one in told["kept"]] == [("micro", "in use")] and not told["removed"]
        assert [one["in_use"] for one in listed] == [True]
        _, err = started.communicate(timeout=300)
        assert started.returncode == 7, err
    finally:
        started.kill()
        started.communicate()
    assert cli("image", "cache", "prune", "--all", "--json", env=cache).json["removed"][0]["name"] == "micro"
    assert not list((cli.cwd / "cache").glob("blobs/sha256/*"))


def test_the_verbs(cli: Cli, micro: Path) -> None:
    cache = {"VMJOB_CACHE": str(cli.cwd / "cache")}
    assert cli("image", "cache", "warm", micro, "--pin", env=cache).status == 0
    listed = cli("image", "cache", "list", env=cache).out.decode()
    assert "micro" in listed and "pinned, verified" in listed
    assert b"pinned" in cli("image", "cache", "prune", "--all", "-n", env=cache).out
    blob = max((cli.cwd / "cache/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"poison")
    kept = cli("image", "cache", "verify", "--keep", "--json", env=cache)
    assert kept.status == 212 and kept.json["wrong"][0]["file"] == str(blob) and blob.exists()
    found = cli("image", "cache", "verify", env=cache)
    assert found.status == 212 and str(blob) in found.out.decode() and not blob.exists()
    assert "incomplete" in cli("image", "cache", "list", env=cache).out.decode()
    assert cli("image", "cache", "warm", micro, env=cache).status == 0
    assert cli("image", "cache", "verify", env=cache).status == 0
    assert cli("image", "cache", "unpin", "micro", env=cache).status == 0
    assert b"removed the image micro" in cli("image", "cache", "prune", "--to", "1MiB", env=cache).out
    for words, status, said in ((("prune", "--in", cli.home / "store"), 200, "a store of images"),
                                (("pin", "micro"), 211, "no image 'micro' in the cache"),
                                (("verify", "--in", "nowhere"), 200, "no such folder"),
                                (("prune", "--to", "much"), 200, "not a size")):
        done = cli("image", "cache", *words, env=cache)
        assert (done.status, said in done.err) == (status, True), done.err


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own is not."""
    if os.getuid():
        pytest.skip("needs root, to become two other users")
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="vmjob-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_two_users_and_a_shared_cache(cli: Cli, micro: Path, public: Path) -> None:
    """Both race through it; it is read, and nothing else."""
    shared, payload, users = public / "shared", public / "payload", (54321, 54322)
    assert cli("image", "cache", "warm", micro, "--to", shared).status == 0
    assert cli("pack", "--image", micro, "--network", "none", "-o", payload, "--", "sh", "-c", "exit 7").status == 0
    (public / "node").mkdir()
    (public / "node").chmod(0o1777)
    before = sorted((path, path.stat().st_mtime_ns) for path in shared.rglob("*"))
    started = []
    for user in users:
        work = public / str(user)
        work.mkdir()
        os.chown(work, user, user)
        started.append(subprocess.Popen(
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "timeout", "240", "env", "-i",
             "PATH=/usr/bin:/bin", f"VMJOB_SHARED_CACHE={shared}", f"VMJOB_NODE_CACHE={public}/node", "sh",
             payload / "vmjob-wrapper.sh"], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for user, one in zip(users, started):
        _, err = one.communicate(timeout=300)
        assert one.returncode == 7, err
        own = public / f"node/uid-{user}"
        assert len(list(own.glob("verified-shared/*"))) == 2 and not list(own.glob("blobs/sha256/*"))
    assert sorted((path, path.stat().st_mtime_ns) for path in shared.rglob("*")) == before


def _allocated(*folders: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for folder in folders for path in folder.rglob("*"))


def test_sixteen_vms_from_one_image(tmp_path: Path) -> None:
    """A disk of 10 GB with 100 MB in it: fetched once, kept once, whatever the number of overlays."""
    need({"qemu-img": "qemu-utils"})
    with (tmp_path / "raw").open("wb") as raw:
        raw.truncate(10 * 10**9)
        for number in range(100):
            raw.seek(number * 95 * 10**6)
            raw.write(os.urandom(2**20))
    (tmp_path / "i").mkdir()
    disk = tmp_path / "i/disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", tmp_path / "raw", disk], check=True)
    digits, size = hash_file(disk)
    virtual = (tmp_path / "raw").stat().st_size
    image = Manifest("big", (ImageFile("disk", "disk.qcow2", "qcow2", size, digits, virtual),), (Boot.DISK,))

    @Way
    def fetch(file: ImageFile, start: int) -> Iterator[bytes]:
        with (tmp_path / "log").open("a") as log:
            log.write("fetched\n")
        with disk.open("rb") as source:
            source.seek(start)
            while piece := source.read(2**20):
                yield piece

    def vm(number: int) -> None:
        store, folder = Store(tmp_path / "c", cache=True), tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        with store.hold(image):
            opened = store.open(image, {}, Reporter(), fetch, folder)
            assert opened.paths["disk"].exists()
            disks.create_overlay(folder / "overlay.qcow2", virtual)

    children = [fork.Process(target=vm, args=(number,)) for number in range(16)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 16
    assert (tmp_path / "log").read_text() == "fetched\n"
    assert len(list(tmp_path.glob("runs/*/overlay.qcow2"))) == 16
    assert _allocated(tmp_path / "c", tmp_path / "runs") <= 1.05 * disk.stat().st_blocks * 512
