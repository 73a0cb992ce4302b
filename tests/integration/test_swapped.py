"""What was verified is what boots, whatever another file has its name by then.

An attacker who can rename in a folder of verified bytes puts others there between verification and QEMU's start. That
is here: at the note of the accelerator, which stands between the two. What the account that owns a file writes into the
file itself (in place) cannot be kept from the guest, by us or by anybody; that is not tested.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import vmjob
from tests import images
from tests.conftest import Cli
from vmjob import blockdev, landlock
from vmjob.image import nbd
from vmjob.image.layering import opened
from vmjob.image.store import Store
from vmjob.model import Accel, Boot, Network
from vmjob.progress import Reporter
from vmjob.result import Result

pytestmark = pytest.mark.integration

SIZE = 16 * 2**20
RIGHT, WRONG = b"the verified bytes", b"another's bytes..."
KINDS = {"qcow2": ("qcow2", []), "vmdk": ("vmdk", []), "stream": ("vmdk", ["-o", "subformat=streamOptimized"]),
         "vdi": ("vdi", []), "vhdx": ("vhdx", [])}


@pytest.fixture(autouse=True)
def tools() -> None:
    images.need({"qemu-img": "qemu-utils", "qemu-system-x86_64": "qemu-system-x86"})


@pytest.fixture(params=["fenced", "no fence"])
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A store and a cache of the test's own. Programs that are not the system's have no fence, nor has any kernel
    without Landlock."""
    if request.param == "no fence":
        for program in ("qemu-system-x86_64", "qemu-img", "qemu-nbd"):
            script = tmp_path / "bin" / program
            script.parent.mkdir(exist_ok=True)
            script.write_text(f'#!/bin/sh\nexec {shutil.which(program)} "$@"\n')
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    elif not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    cli = Cli(tmp_path, tmp_path)
    for name, value in cli.environment({"VMJOB_BOOT_TIMEOUT": "20s"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    return cli


def sector(text: bytes) -> bytes:
    """A boot sector that writes ``text`` to the serial line and powers q35 off."""
    code = bytes.fromhex("31c0 8ed8 fc be1d7c baf803 ac 84c0 7403 ee ebf8 ba0406 b80020 ef f4 ebfd".replace(" ", ""))
    assert len(code) == 0x1d
    partition = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048)
    return (code + text + b"\r\n\0").ljust(446, b"\0") + partition + bytes(48) + b"\x55\xaa"


def disk(folder: Path, text: bytes, kind: str = "raw") -> Path:
    folder.mkdir(exist_ok=True)
    raw = folder / "disk.raw"
    raw.write_bytes(sector(text))
    os.truncate(raw, SIZE)
    form, options = KINDS.get(kind, ("raw", []))
    if form == "raw":
        return raw
    target = folder / f"disk.{form}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, target], check=True)
    return target


class Swapping(Reporter):
    """Calls ``swap`` when the image was verified and QEMU does not run."""

    def __init__(self, swap: Callable[[], None]) -> None:
        self._swap, self.swaps = swap, 0

    def note(self, text: str) -> None:
        if text.startswith("accelerator "):
            self._swap()
            self.swaps += 1


def boots(image: str, boot: Boot, folder: Path, swap: Callable[[], None]) -> tuple[Result, bytes]:
    """The result and the console of a run of ``image`` in whose midst ``swap`` is called."""
    results, reporter = folder / "results", Swapping(swap)
    results.mkdir()
    job = vmjob.Job(name="x", image=image, command=("true",), boot=boot, network=Network.NONE, accel=Accel.TCG)
    done = vmjob.run_job(job, results=results, scratch=folder / "scratch", reporter=reporter)
    assert reporter.swaps == 1
    console = results / "console.log"
    return done, console.read_bytes() if console.exists() else b""


def put(file: Path, other: Path) -> None:
    """``other`` under the name of ``file``."""
    spare = file.with_name(".spare")
    shutil.copyfile(other, spare)
    spare.replace(file)


def blobs(cli: Cli) -> set[Path]:
    return set((cli.home / "store/blobs/sha256").iterdir())


def taken(cli: Cli, *args: object) -> None:
    done = cli(*args)
    assert done.status == 0, done.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk(here: Cli, kind: str) -> None:
    taken(here, "image", "import", disk(here.cwd / "right", RIGHT, kind), "--name", "swapped")
    (blob,) = blobs(here)
    wrong = disk(here.cwd / "wrong", WRONG, kind)
    _, console = boots("swapped", Boot.DISK, here.cwd, lambda: put(blob, wrong))
    assert RIGHT in console and WRONG not in console


def test_a_raw_disk_beside_its_manifest(here: Cli) -> None:
    """Where nothing can be kept the files are used in place: the folder may be anybody's."""
    import hashlib
    import json

    file = disk(here.cwd / "image", RIGHT)
    wrong = disk(here.cwd / "wrong", WRONG)
    one = {"role": "disk", "path": file.name, "format": "raw", "size": SIZE, "virtual_size": SIZE,
           "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest = file.with_name("manifest.yaml")
    manifest.write_text(json.dumps({"schema": 1, "name": "raw", "boot": ["disk"], "files": [one], "firmware": "bios"}))
    cache = here.home / "cache"
    cache.mkdir()
    (cache / "uses").write_text("no folder, so nothing is locked here, and nothing kept")
    _, console = boots(str(manifest), Boot.DISK, here.cwd, lambda: put(file, wrong))
    assert RIGHT in console and WRONG not in console
    assert not list(cache.glob("blobs/sha256/*"))


def test_a_layer(here: Cli) -> None:
    """All of a chain: the base, the layer as it travels, and the disk that a node makes of it."""
    images.need({"qemu-nbd": "qemu-utils"})
    taken(here, "image", "import", disk(here.cwd / "base", b"the base", "qcow2"), "--name", "base")
    new, wrong = disk(here.cwd / "right", RIGHT), disk(here.cwd / "wrong", WRONG, "qcow2")
    taken(here, "image", "layer", "base", "--from-disk", new, "--name", "layered", "-o", here.cwd / "out")

    def swap() -> None:
        made = {path for place in ("store", "cache") for path in here.home.glob(f"{place}/derived/*")}
        assert made
        for file in made | blobs(here) | set(here.home.glob("cache/blobs/sha256/*")):
            put(file, wrong)

    _, console = boots("layered", Boot.DISK, here.cwd, swap)
    assert RIGHT in console and WRONG not in console and b"the base" not in console


@pytest.mark.parametrize("role", ["kernel", "initrd"])
def test_a_kernel_and_an_initrd(here: Cli, home: Path, role: str) -> None:
    manifest, paths = Store(home / "store").resolve("micro")
    store = Store(here.home / "store")
    store.add(manifest, here.cwd, sources=paths)
    (file,) = (file for file in manifest.files if file.role == role)
    wrong = here.cwd / "wrong"
    wrong.write_bytes(b"\0" * 65536)
    done, _ = boots("micro", Boot.JOB, here.cwd, lambda: put(store.blobs.path(file.sha256), wrong))
    assert done.outcome == "ok", done


def test_tools_read_what_was_verified(here: Cli) -> None:
    """qemu-nbd and qemu-img, of an image that layers are made of."""
    images.need({"qemu-nbd": "qemu-utils"})
    taken(here, "image", "import", disk(here.cwd / "right", RIGHT, "vmdk"), "--name", "read")
    (blob,) = blobs(here)
    wrong = disk(here.cwd / "wrong", WRONG, "vmdk")
    with opened("read", Store(here.home / "store"), Reporter(), lambda manifest: None) as image:
        put(blob, wrong)
        nodes = [(str(image.chain[0]), "vmdk")]
        with nbd.serve(nodes) as reader:
            assert RIGHT in reader.read(0, 512)
        blockdev.qemu_img("convert", "-O", "raw", blockdev.file_name(nodes), str(here.cwd / "copy"), disks=nodes,
                          folder=here.cwd)
    assert RIGHT in (here.cwd / "copy").read_bytes()[:512]


def test_nothing_stays_open(here: Cli) -> None:
    taken(here, "image", "import", disk(here.cwd / "right", RIGHT, "qcow2"), "--name", "closed")
    place = Path("/proc/self/fd")
    before = list(place.iterdir())
    boots("closed", Boot.DISK, here.cwd, lambda: None)
    assert list(place.iterdir()) == before
