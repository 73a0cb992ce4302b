"""Layers on real disks: what a node makes of them is the disk, byte for byte, and boots."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.conftest import ROOT, Cli
from vmjob import blockdev, process
from vmjob.errors import HostError, ImageCorrupt, ScratchFull
from vmjob.image import apply, chain, delta, layering, nbd, qcow2
from vmjob.image import manifest as manifests
from vmjob.image.store import Store
from vmjob.model import Image, ImageFile
from vmjob.progress import Reporter

pytestmark = pytest.mark.integration

MIB = 2**20
BLOCK = 4096


@pytest.fixture(autouse=True)
def tools() -> None:
    images.need({"qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils"})


@pytest.fixture
def here(tmp_path: Path) -> Cli:
    """A store and a cache of the test's own."""
    return Cli(tmp_path, tmp_path)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def disk(path: Path, *parts: tuple[int, bytes], size: int = 16 * MIB) -> Path:
    """A raw disk with a partition table, and ``parts`` at their offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(446)
        file.write(b"\x80\0\0\0\x83\0\0\0\1\0\0\0\1\0\0\0".ljust(64, b"\0") + b"\x55\xaa")
        for at, data in parts:
            file.seek(at)
            file.write(data)
    return path


def convert(raw: Path, form: str, *options: str) -> Path:
    target = raw.with_suffix(f".{form}")
    process.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, target])
    return target


def register(cli: Cli, file: Path, name: str = "base") -> None:
    done = cli("image", "import", file, "--name", name, "--firmware", "bios")
    assert done.status == 0, done.err


def layer(cli: Cli, base: str, new: Path, name: str) -> dict[str, Any]:
    done = cli("image", "layer", base, "--from-disk", new, "--name", name, "-o", f"out-{name}", "--json")
    assert done.status == 0, done.err
    return done.json


def store(cli: Cli) -> Store:
    return Store(cli.home / "store")


def opened(cli: Cli, name: str) -> Image:
    manifest, paths = store(cli).resolve(name)
    return store(cli).open(manifest, paths, Reporter(), spare=cli.cwd)


def same(cli: Cli, name: str, raw: Path) -> None:
    """The guest of the image ``name`` sees exactly the bytes of ``raw``."""
    image = opened(cli, name)
    assert image.manifest.virtual_size == raw.stat().st_size
    process.run(["qemu-img", "compare", blockdev.file_name(chain.nodes(image.manifest, image.chain)),
                 blockdev.file_name([(str(raw), "raw")])])
    for path in image.chain[1:]:
        process.run(["qemu-img", "check", "-f", "qcow2", path])
        told = json.loads(process.run(["qemu-img", "info", "--output=json", "-f", "qcow2", path]).stdout)
        assert "backing-filename" not in told
    if image.chain[1:]:
        assert told["virtual-size"] == raw.stat().st_size


FIRST, SECOND = noise(1, 5 * MIB), noise(2, MIB)
CHANGES = {
    "in place": ((MIB, FIRST), (3 * MIB + BLOCK, noise(3, 5 * BLOCK))),
    "shifted": ((MIB + BLOCK, FIRST), (10 * MIB, SECOND)),
    "turned round": ((MIB, FIRST[4 * MIB:]), (2 * MIB, FIRST[2 * MIB:4 * MIB]), (4 * MIB, FIRST[:2 * MIB])),
    "deleted": ((MIB, FIRST[:MIB]),),
    "odd bytes": ((MIB, FIRST), (10 * MIB + 123, b"x"), (12 * MIB - 1, b"yz")),
}


@pytest.mark.parametrize(("form", "change"), [
    *(("qcow2", change) for change in CHANGES), *((form, "shifted") for form in ("vmdk", "vdi", "vhdx"))])
def test_the_guest_sees_the_new_disk(here: Cli, tmp_path: Path, form: str, change: str) -> None:
    base = disk(tmp_path / "base.raw", (MIB, FIRST))
    register(here, convert(base, form))
    new = disk(tmp_path / "new.raw", *CHANGES[change])
    made = layer(here, "base", new, "changed")
    assert [file["role"] for file in made["files"]] == ["disk", "layer1"]
    assert made["files"][0]["sha256"] == here("image", "inspect", "--json", "base").json["files"][0]["sha256"]
    same(here, "changed", new)
    if change in ("shifted", "turned round"):
        assert made["layer_copied"] > 4 * MIB and made["layer_new"] <= MIB + 2 * BLOCK
    if change == "deleted":
        assert made["layer_new"] == 0 and made["layer_size"] < 1000


@pytest.mark.parametrize("size", [64 * MIB, 4 * MIB, 16 * MIB + 512, 16 * MIB - 512])
def test_another_size(here: Cli, tmp_path: Path, size: int) -> None:
    register(here, convert(disk(tmp_path / "base.raw", (MIB, FIRST), (16 * MIB - 9000, noise(5, 9000))), "qcow2"))
    new = disk(tmp_path / "new.raw", (MIB, FIRST[:2 * MIB]), (size - 5000, noise(4, 5000)), size=size)
    layer(here, "base", new, "changed")
    same(here, "changed", new)


def test_nothing_of_a_disk_that_shrank_comes_back(here: Cli, tmp_path: Path) -> None:
    """A chain of three, and flattened."""
    register(here, convert(disk(tmp_path / "base.raw", (MIB, FIRST), (12 * MIB, SECOND)), "qcow2", "-c"))
    disks = [disk(tmp_path / "one.raw", (MIB, FIRST), size=8 * MIB),
             disk(tmp_path / "two.raw", (MIB, FIRST), size=20 * MIB),
             disk(tmp_path / "three.raw", (MIB, FIRST), (2 * MIB, SECOND), (18 * MIB, noise(6, MIB)), size=20 * MIB)]
    for below, name, new in zip(("base", "one", "two"), ("one", "two", "three"), disks):
        layer(here, below, new, name)
    for name, new in zip(("one", "two", "three"), disks):
        same(here, name, new)
    assert len(opened(here, "three").chain) == 4
    flat = here("image", "flatten", "three", "-o", "flat", "--json")
    assert flat.status == 0, flat.err
    assert [file["role"] for file in flat.json["files"]] == ["disk"] and flat.json["name"] == "three-flat"
    same(here, "three-flat", disks[2])
    assert here("image", "layer", "three", "--from-disk", disks[2], "-o", "x").status == 210  # nothing differs


def test_a_layer_of_a_folder_and_of_an_image(here: Cli, tmp_path: Path) -> None:
    """The base is a folder of somebody's, never registered; what comes out is a folder that is whole."""
    new = disk(tmp_path / "new.raw", (MIB, FIRST), (8 * MIB, SECOND))
    register(here, convert(disk(tmp_path / "base.raw", (MIB, FIRST)), "qcow2"))
    register(here, convert(new, "qcow2", "-c"), "new")
    done = here("image", "layer", "base", "--from-image", "new", "-o", "v2", "--name", "v2", "--no-register")
    assert done.status == 0, done.err
    assert here("image", "inspect", "v2").status == 0  # the folder of that name
    assert here("image", "rm", "base", "new").status == 0
    assert sorted(path.name for path in (tmp_path / "v2").iterdir()) == ["disk.qcow2", "layer1.delta", "manifest.yaml"]
    third = disk(tmp_path / "third.raw", (MIB, FIRST), (8 * MIB, SECOND), (10 * MIB, noise(7, 100)))
    made = layer(here, "./v2", third, "v3")
    assert made["layer_new"] == BLOCK
    same(here, "v3", third)


# ---------------------------------------------------------------- what goes wrong


def made_by_hand(tmp_path: Path, *, old: bytes = FIRST, new: bytes = FIRST + SECOND) -> tuple[delta.Delta, Path, Path]:
    """A layer without the command line: itself, the disk below, and the disk that it makes of it."""
    base = disk(tmp_path / "base.raw", (MIB, old))
    target = disk(tmp_path / "new.raw", (MIB, new))
    layering._write(tmp_path / "l.delta", ["a" * 64], [(str(base), "raw")], [(str(target), "raw")], 16 * MIB, tmp_path,
                    Reporter())
    return delta.read(tmp_path / "l.delta", ["a" * 64], 16 * MIB, 16 * MIB), base, target


def test_another_base_is_refused(here: Cli, tmp_path: Path) -> None:
    """The manifest is right in itself; only the layer knows that it belongs on another disk."""
    for name, seed in (("base", 1), ("other", 8)):
        register(here, convert(disk(tmp_path / f"{name}.raw", (MIB, noise(seed, MIB))), "qcow2"), name)
    layer(here, "base", disk(tmp_path / "new.raw", (MIB, SECOND)), "changed")
    (first, layer1), (wrong, *_) = opened(here, "changed").manifest.files, opened(here, "other").manifest.files
    folder = tmp_path / "mixed"
    folder.mkdir()
    mixed = manifests.load(tmp_path / "out-changed")
    (folder / "manifest.yaml").write_text(manifests.dump(
        type(mixed)(**{**mixed.__dict__, "name": "mixed", "files": (wrong, layer1)})))
    (folder / wrong.path).write_bytes(store(here).blobs.path(wrong.sha256).read_bytes())
    (folder / layer1.path).write_bytes((tmp_path / "out-changed/layer1.delta").read_bytes())
    done = here("run", "--image", "./mixed", "--accel", "tcg", "--", "true")
    assert done.status == 213, done.err
    assert f"belongs on {first.sha256[:12]}…, but the manifest puts it on {wrong.sha256[:12]}…" in done.err
    (folder / wrong.path).unlink()
    empty = {"VMJOB_CACHE": str(tmp_path / "empty")}
    done = here("run", "--image", "./mixed", "--accel", "tcg", "--", "true", env=empty)
    assert done.status == 211 and wrong.path in done.err
    assert here.left_over() == []


def test_a_damaged_base_is_told(tmp_path: Path) -> None:
    made, base, _ = made_by_hand(tmp_path, new=SECOND + FIRST)
    base.unlink()
    with pytest.raises(HostError, match=r"qemu-nbd cannot open it: .*No such file"):
        apply.materialise(made, [(str(base), "raw")], tmp_path / "x")
    base.write_bytes(b"QFI\xfb")
    with pytest.raises(HostError, match=r"qemu-nbd cannot open it"):
        apply.materialise(made, [(str(base), "qcow2")], tmp_path / "x")
    packed = convert(disk(base, (MIB, b"".join(noise(n, 2000).hex().encode() for n in range(1000)))), "qcow2", "-c")
    spoilt = bytearray(packed.read_bytes())
    spoilt[MIB:MIB + 500_000] = noise(9, 500_000)
    packed.write_bytes(spoilt)
    with pytest.raises(ImageCorrupt, match="cannot be read: Input/output error"):
        apply.materialise(made, [(str(packed), "qcow2")], tmp_path / "x")


def test_a_spoilt_layer_is_refused_before_it_is_read(here: Cli, tmp_path: Path) -> None:
    register(here, convert(disk(tmp_path / "base.raw", (MIB, FIRST)), "qcow2"))
    layer(here, "base", disk(tmp_path / "new.raw", (MIB, SECOND)), "changed")
    assert here("image", "rm", "changed", "base").status == 0
    file = tmp_path / "out-changed/layer1.delta"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = here("run", "--image", "./out-changed", "--", "true")
    assert done.status == 212 and "layer1.delta" in done.err, done.err


def test_no_room_is_told_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, base, _ = made_by_hand(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 9, 9, 9, 9, 9, 9, 0, 255)))
    with pytest.raises(ScratchFull, match=r"no space for .*MiB, which the layer l.delta becomes"):
        apply.materialise(made, [(str(base), "raw")], tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("words", "message"), [
    ((), "one of RECIPE.yaml, --from-disk and --from-image"),
    (("r.yaml", "--from-disk", "x"), "one of RECIPE.yaml, --from-disk and --from-image"),
    (("--from-disk", "nowhere.qcow2"), "nowhere.qcow2: no such file"),
    (("--from-disk", "text"), "no disk format known here"),
    (("--from-disk", "evil.qcow2"), "its backing file is '/etc/passwd'"),
    (("--from-disk", "base.raw", "--name", "a b"), "name"),
    (("--from-disk", "base.raw"), "the disk is the same as the base's"),
    (("--from-image", "nowhere"), "there is no image 'nowhere'")])
def test_mistakes(here: Cli, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    base = disk(tmp_path / "base.raw", (MIB, SECOND))
    register(here, convert(base, "qcow2"))
    (tmp_path / "text").write_text("no disk" * 1000)
    process.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd",
                 tmp_path / "evil.qcow2", "16M"])
    done = here("image", "layer", "base", *words, "-o", "out")
    assert 200 <= done.status < 220 and message in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "out/manifest.yaml").exists()
    assert [p.name for p in tmp_path.glob("out/*")] == [] and not list(tmp_path.glob("out/.l*"))


def test_a_tenth_layer_is_too_many(here: Cli, tmp_path: Path) -> None:
    register(here, convert(disk(tmp_path / "base.raw"), "qcow2"))
    image = opened(here, "base")
    files = tuple(ImageFile(f"layer{n}", f"l{n}", "delta", 1, "a" * 64, 16 * MIB) for n in range(1, 10))
    full = Image(type(image.manifest)(**{**image.manifest.__dict__, "files": image.manifest.files + files}), {}, ())
    with pytest.raises(Exception, match="has 9 layers, the most there can be"):
        layering.layer_on_disk(full, tmp_path / "base.raw", "x", tmp_path / "out", Reporter())


def test_micro_has_no_disk(cli: Cli) -> None:
    done = cli("image", "layer", "micro", "--from-disk", "x", "-o", "out")
    assert done.status == 210 and "the image micro has no disk" in done.err


# ---------------------------------------------------------------- processes

OPEN = """
import sys
from pathlib import Path
from vmjob.image import apply
from vmjob.image.store import Store
from vmjob.progress import Reporter
root, name, spare, stop = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
if stop:
    def hang(*args):
        print("half", flush=True)
        sys.stdin.read()
    setattr(apply, stop, hang)
count = []
make = apply.materialise
apply.materialise = lambda *args: (count.append(1), make(*args))
store = Store(root)
image = store.open(*store.resolve(name), Reporter(), spare=spare)
print(len(count), *image.chain, flush=True)
"""


def opener(cli: Cli, name: str, stop: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OPEN, str(cli.home / "store"), name, str(cli.cwd), stop], cwd=ROOT,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def servers() -> list[str]:
    """Of each qemu-nbd its command line and the files that it has open, which are the ones that it serves."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
            if "qemu-nbd" in words:
                found.append(" ".join([words, *(str(one.readlink()) for one in (entry / "fd").iterdir())]))
    return found


@pytest.fixture
def changed(here: Cli, tmp_path: Path) -> Path:
    """The disk of the image ``changed`` in the store, whose layer has new blocks and copied ones."""
    register(here, convert(disk(tmp_path / "base.raw", (MIB, FIRST)), "qcow2"))
    new = disk(tmp_path / "new.raw", (MIB, SECOND), (3 * MIB, FIRST))
    layer(here, "base", new, "changed")
    return new


@pytest.mark.parametrize("where", ["_write_new", "_write_copied"])
def test_kill_9_while_it_is_made(here: Cli, changed: Path, where: str) -> None:
    half = opener(here, "changed", where)
    assert half.stdout and half.stdout.readline() == "half\n"
    mine = [line for line in servers() if str(here.home) in line]
    assert len(mine) == (where == "_write_copied")
    half.send_signal(signal.SIGKILL)
    half.wait()
    again, _ = opener(here, "changed").communicate(timeout=60)
    assert again.split()[0] == "1"  # made anew, whatever was left
    same(here, "changed", changed)
    end = time.monotonic() + 10
    while any(str(here.home) in line for line in servers()):
        assert time.monotonic() < end, servers()
        time.sleep(0.05)


def test_one_makes_it_and_the_others_wait(here: Cli, changed: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        said = [one.split() for one in pool.map(lambda _: opener(here, "changed").communicate(timeout=60)[0], range(4))]
    assert sorted(one[0] for one in said) == ["0", "0", "0", "1"]
    assert len({tuple(one[1:]) for one in said}) == 1
    same(here, "changed", changed)


def test_where_the_store_takes_nothing_the_run_folder_does(here: Cli, changed: Path, tmp_path: Path) -> None:
    shutil.rmtree(here.home / "store/tmp")
    (here.home / "store/tmp").write_text("no folder: this stops root too")
    said = opener(here, "changed").communicate(timeout=60)[0].split()
    assert said[0] == "1" and Path(said[2]).parent == tmp_path
    assert Path(said[2]).stat().st_size > 0


def test_reading_goes_on_behind_the_end_and_out_of_order(tmp_path: Path) -> None:
    data = noise(1, 3 * MIB + 512)
    (tmp_path / "d, é:x").write_bytes(data)
    with nbd.serve([(str(tmp_path / "d, é:x"), "raw")]) as reader:
        assert reader.size == len(data)
        pieces = [(random.Random(n).randrange(4 * MIB), n * 1000) for n in range(200)]
        for (at, length), found in zip(pieces, reader.reads(pieces)):
            assert found == data[at:at + length].ljust(length, b"\0")
    assert not [line for line in servers() if str(tmp_path) in line]


def test_what_we_lay_out_is_a_good_qcow2(tmp_path: Path) -> None:
    """Every kind of extent, across tables and blocks of reference counts (8 MiB of data need a second one)."""
    extents = [(1, 1, True), (510, 4, True), (514, 3, False), (1024, 2500, True), (5000, 513, False)]
    sparse = qcow2.Sparse(32 * MIB, extents)
    with (tmp_path / "x").open("w+b") as out:
        sparse.write_tables(out.fileno())
        out.seek(sparse.data_at)
        out.write(noise(1, 2505 * BLOCK))
    below = disk(tmp_path / "below.raw", (MIB, FIRST), size=24 * MIB)
    process.run(["qemu-img", "check", "-f", "qcow2", tmp_path / "x"])
    wanted = bytearray(below.read_bytes().ljust(32 * MIB, b"\0"))
    fresh = noise(1, 2505 * BLOCK)
    for target, count, stored in extents:
        wanted[target * BLOCK:(target + count) * BLOCK] = fresh[:count * BLOCK] if stored else bytes(count * BLOCK)
        fresh = fresh[count * BLOCK:] if stored else fresh
    (tmp_path / "wanted.raw").write_bytes(wanted)
    process.run(["qemu-img", "compare", blockdev.file_name([(str(below), "raw"), (str(tmp_path / "x"), "qcow2")]),
                 blockdev.file_name([(str(tmp_path / "wanted.raw"), "raw")])])


@pytest.mark.parametrize("areas", [1, 7])
def test_areas_of_zeros_share_a_table(tmp_path: Path, areas: int) -> None:
    """512 clusters are an area. With a stored cluster before and behind, in areas that are not zeros alone."""
    extents = [(100, 1, True), (101, 500, False), (601, areas * 512 + 500, False), (601 + areas * 512 + 500, 1, True)]
    size, fresh = 32 * MIB, noise(1, 2 * BLOCK)
    sparse = qcow2.Sparse(size, extents)
    with (tmp_path / "x").open("w+b") as out:
        sparse.write_tables(out.fileno())
        out.seek(sparse.data_at)
        out.write(fresh)
    process.run(["qemu-img", "check", "-f", "qcow2", tmp_path / "x"])
    below = disk(tmp_path / "below.raw", (0, noise(2, size)), size=size)
    wanted = bytearray(below.read_bytes())
    end = (601 + areas * 512 + 501) * BLOCK
    wanted[100 * BLOCK:end] = fresh[:BLOCK] + bytes(end - 102 * BLOCK) + fresh[BLOCK:]
    (tmp_path / "wanted.raw").write_bytes(wanted)
    process.run(["qemu-img", "compare", blockdev.file_name([(str(below), "raw"), (str(tmp_path / "x"), "qcow2")]),
                 blockdev.file_name([(str(tmp_path / "wanted.raw"), "raw")])])


def test_zeros_that_are_copied_hide_what_is_below(tmp_path: Path) -> None:
    """A strange layer moves the empty half of a disk over the full one: nothing of it is written."""
    base = disk(tmp_path / "base.raw", (0, noise(1, 8 * MIB)))
    runs = delta.Runs()
    runs.append(1, 2000, 2048)
    delta.write(tmp_path / "l.delta", ["a"], 16 * MIB, runs, [])
    apply.materialise(delta.read(tmp_path / "l.delta", ["a"], 16 * MIB, 16 * MIB), [(str(base), "raw")], tmp_path / "x")
    assert (tmp_path / "x").stat().st_blocks * 512 < MIB
    wanted = bytearray(base.read_bytes())
    wanted[BLOCK:2001 * BLOCK] = bytes(2000 * BLOCK)
    (tmp_path / "wanted.raw").write_bytes(wanted)
    process.run(["qemu-img", "check", "-f", "qcow2", tmp_path / "x"])
    process.run(["qemu-img", "compare", blockdev.file_name([(str(base), "raw"), (str(tmp_path / "x"), "qcow2")]),
                 blockdev.file_name([(str(tmp_path / "wanted.raw"), "raw")])])


# ---------------------------------------------------------------- booted


@pytest.mark.image
def test_a_changed_debian_boots_and_runs_what_was_changed(cli: Cli, tmp_path: Path) -> None:
    images.need({"qemu-system-x86_64": "qemu-system-x86", "debugfs": "e2fsprogs"})
    base = images.register(cli, images.built(ROOT / "tests/debian.yaml"))
    image, raw = opened(cli, base), tmp_path / "new.raw"
    process.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.chain[0], raw])
    (tmp_path / "hello").write_text("#!/bin/sh\necho changed; grep -c . /etc/changed\n")
    (tmp_path / "data").write_bytes(b"line\n" * 50_000)
    process.run(["debugfs", "-w", "-f", "/dev/stdin", raw],
                input=f"write {tmp_path}/hello /usr/bin/hello\nsif /usr/bin/hello mode 0100755\n"
                      f"write {tmp_path}/data /etc/changed\n".encode())
    done = cli("image", "layer", base, "--from-disk", raw, "--name", "test-layered", "-o", "out", "--no-register")
    assert done.status == 0, done.err
    raw.unlink()
    for boot in ("job", "system"):
        done = cli("run", "-q", "--image", "./out", "--boot", boot, "--accel", "tcg", "--network", "none", "--",
                   "hello", timeout=300)
        assert (done.status, done.out) == (0, b"changed\n50000\n"), done.err
    assert cli.left_over() == []
