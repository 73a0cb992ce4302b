"""QEMU and its tools open the files that they are given and no other, whatever an image says; and those of an image not
by name, but as the open files that were verified: seen by strace."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest

from tests import images
from tests.conftest import Cli
from vmjob import blockdev, fences, landlock, process
from vmjob.errors import ImageRefused
from vmjob.image import formats
from vmjob.landlock import Fence

pytestmark = pytest.mark.integration

MIB = 2**20
SIZE = 64 * MIB
KINDS = {"qcow2": ("qcow2", []), "vmdk": ("vmdk", []), "stream": ("vmdk", ["-o", "subformat=streamOptimized"]),
         "vdi": ("vdi", []), "vhdx": ("vhdx", []), "raw": ("raw", [])}
# what any program opens, and none of it is the user's: beside _PROGRAMS of fences
SYSTEM = re.compile(r"/(usr|lib|lib64|bin|sys|dev|etc/(ld\.so|localtime|libnl/)"
                    r"|proc/(self|thread-self|cpuinfo|meminfo|sys|filesystems|mounts)\b)")
OPENED = re.compile(r'\b(?:open|openat|openat2|creat)\((?:AT_FDCWD|\d+)?(?:<[^>]*>)?,? ?"((?:[^"\\]|\\.)*)"')
HANDED = re.compile(r'\b(?:open|openat)\(.*"(?:file:)?/proc/self/fd/\d+".* = \d+<([^>]*)>')
CONNECTED = re.compile(r"\bconnect\(\d+(?:<[^>]*>)?, [^{]*\{sa_family=(\w+)")


@pytest.fixture(autouse=True)
def tools() -> None:
    images.need({"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "strace": "strace",
                 "qemu-system-x86_64": "qemu-system-x86"})


def traced(folder: Path, program: str) -> Path:
    """A stand-in for ``program`` that runs it under strace; the log. It is no system's program, and so has no fence."""
    log = folder / f"{program}.strace"
    script = folder / "bin" / program
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec strace -f -y -A -s 4096 -o {log} -e trace=open,openat,openat2,creat,connect '
                      f'{shutil.which(program)} "$@"\n')
    script.chmod(0o755)
    return log


def opened(log: Path) -> set[str]:
    """Names of files that were asked for, whether or not they were there, but for what every program has."""
    text = log.read_text(errors="replace")
    assert set(CONNECTED.findall(text)) <= {"AF_UNIX"}, text
    return {name for name in OPENED.findall(text.replace('"file:', '"')) if not SYSTEM.match(name)}


def handed(log: Path) -> set[str]:
    """Files that it got open, and opened by that."""
    return set(HANDED.findall(log.read_text(errors="replace")))


def disk(folder: Path, kind: str) -> Path:
    """A disk with a boot sector that halts."""
    raw = folder / "disk.raw"
    partition = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048)
    raw.write_bytes(b"\xf4\xeb\xfd".ljust(446, b"\0") + partition + bytes(48) + b"\x55\xaa")
    os.truncate(raw, SIZE)
    form, options = KINDS[kind]
    if form == "raw":
        return raw
    target = folder / f"disk.{form}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, target], check=True)
    raw.unlink()
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_opens_what_it_is_given(cli: Cli, kind: str) -> None:
    image = disk(cli.cwd, kind)
    tool, qemu = traced(cli.cwd, "qemu-img"), traced(cli.cwd, "qemu-system-x86_64")
    env = {"PATH": f"{cli.cwd}/bin:{os.environ['PATH']}", "VMJOB_HOME": str(cli.cwd / "store"),
           "VMJOB_BOOT_TIMEOUT": "3s"}
    taken = cli("image", "import", image, "--name", "opens", env=env)
    assert taken.status == 0, taken.err
    own = (str(image), f"{cli.cwd}/store/", f"{cli.cwd}/scratch/vmjob-")
    assert not [name for name in opened(tool) if not name.startswith(own)]
    done = cli("run", "--image", "opens", "--boot", "disk", "--network", "none", "--accel", "tcg", "--", "true",
               env=env)
    assert "BootFailed" in done.err, done.err  # nothing in it speaks to us
    (blob,) = [path for path in (cli.cwd / "store/blobs/sha256").iterdir() if path.stat().st_size > 10_000]
    # by name only what is in its working folder
    assert opened(qemu) <= {"overlay.qcow2", "seed.iso", "."} and "overlay.qcow2" in opened(qemu)
    assert handed(qemu) == {str(blob)}


def test_a_run_is_handed_kernel_and_initrd(cli: Cli) -> None:
    qemu = traced(cli.cwd, "qemu-system-x86_64")
    (cli.cwd / "input").write_text("of the job")
    done = cli.micro("--input", "input", "--network", "none", "--accel", "tcg", "--", "true",
                     env={"PATH": f"{cli.cwd}/bin:{os.environ['PATH']}"})
    assert done.status == 0, done.err
    stored = cli.home / "store/blobs/sha256"
    assert not [name for name in opened(qemu) if not name.startswith(f"{cli.cwd}/scratch/vmjob-") and name != "."]
    assert {str(Path(name).parent) for name in handed(qemu)} == {str(stored)} and len(handed(qemu)) == 2


def test_a_layered_run_is_handed_the_chain(cli: Cli) -> None:
    """The base and what is made of the layer; for that qemu-nbd gets the base."""
    images.need({"qemu-nbd": "qemu-utils"})
    nbd, qemu = traced(cli.cwd, "qemu-nbd"), traced(cli.cwd, "qemu-system-x86_64")
    env = {"PATH": f"{cli.cwd}/bin:{os.environ['PATH']}", "VMJOB_HOME": str(cli.cwd / "store"),
           "VMJOB_CACHE": str(cli.cwd / "cache"), "VMJOB_BOOT_TIMEOUT": "3s"}
    base, new = disk(cli.cwd, "qcow2"), cli.cwd / "new.raw"
    # what is copied within the disk is read out of the base
    data = os.urandom(8 * 4096)
    for path in (new, cli.cwd / "base.raw"):
        subprocess.run(["qemu-img", "convert", "-O", "raw", base, path], check=True)
        with path.open("r+b") as file:
            file.seek(8 * MIB if path == new else 4 * MIB)
            file.write(data)
    for command in (("import", cli.cwd / "base.raw", "--name", "base"),
                    ("layer", "base", "--from-disk", new, "--name", "top", "-o", cli.cwd / "out")):
        done = cli("image", *command, env=env)
        assert done.status == 0, done.err
    assert {str(path) for path in (cli.cwd / "store/blobs/sha256").iterdir()} & handed(nbd)
    assert str(new) in opened(nbd)  # the maker's own disk
    nbd.unlink()
    done = cli("run", "--image", "top", "--boot", "disk", "--network", "none", "--accel", "tcg", "--", "true", env=env)
    assert "BootFailed" in done.err, done.err
    assert not opened(nbd)
    (made,) = cli.cwd.glob("*/derived/*")
    assert opened(qemu) <= {"overlay.qcow2", "seed.iso", "."}
    assert len(handed(nbd)) == 1 and handed(qemu) == {str(made), *handed(nbd)}


# ---------------------------------------------------------------- a vmdk of two minds


def two_minds(folder: Path, secret: Path) -> tuple[Path, Path]:
    """A vmdk with a clean descriptor where its header says, and another where QEMU looks, which names a parent: a text
    file that the image has too, and whose extent is ``secret``."""
    parent, image = folder / "parent", folder / "disk.vmdk"
    # without data of its own, so that all of a parent's shows
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", image, str(SIZE)], check=True)
    parent.write_text('# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n'
                      f'createType="monolithicFlat"\n\nRW {SIZE // 512} FLAT "{secret}" 0\n\n'
                      'ddb.virtualHWVersion = "4"\n')
    data = bytearray(image.read_bytes())
    clean = bytes(data[512:512 + 20 * 512])
    data += bytes(-len(data) % 65536) + clean
    struct.pack_into("<Q", data, 28, (len(data) - len(clean)) // 512)
    evil = (f'# Disk DescriptorFile\nversion=1\nCID=aaaaaaaa\nparentCID=12345678\ncreateType="monolithicSparse"\n'
            f'parentFileNameHint="{parent}"\n\nRW {SIZE // 512} SPARSE "disk.vmdk"\n')
    data[512:512 + 20 * 512] = evil.encode().ljust(20 * 512, b"\0")
    image.write_bytes(data)
    return image, parent


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(b"the user's token".ljust(512, b"\n"))
    os.truncate(path, SIZE)
    return path


def reads(words: Sequence[str], fence: Optional[Fence] = None) -> bytes:
    """What qemu-io shows of the disk's first sector."""
    done = process.run([shutil.which("qemu-io") or "", "-r", "-c", "read -v 0 512", *words], check=False, fence=fence)
    return done.stdout + done.stderr


def test_a_descriptor_that_qemu_reads_elsewhere(cli: Cli, secret: Path) -> None:
    """Attack vmdk_backing."""
    image, parent = two_minds(cli.cwd, secret)
    # the attack is real: QEMU, told of the file alone, reads the secret
    assert b"the.user.s.token" in reads(["-f", "vmdk", str(image)])
    # 1. it is refused by name, before QEMU sees it: imported, and at each boot
    refused = cli("image", "import", image, "--name", "bad")
    assert refused.status == ImageRefused.status and "descriptor is at sector" in refused.err
    with pytest.raises(ImageRefused, match="where QEMU does not look"):
        formats.check_header(image, "vmdk", SIZE)
    # 2. as we give disks to QEMU, it opens no parent
    told = reads([blockdev.file_name([(str(image), "vmdk")])])
    assert b"the.user.s.token" not in told and b"read 512/512 bytes" in told
    # 3. and where it would, the kernel lets it not
    if landlock.abi():
        fence = fences.fence(shutil.which("qemu-io") or "", [str(image), str(parent)])
        assert b"Permission denied" in reads(["-f", "vmdk", str(image)], fence)


def test_other_files_of_an_image_are_what_its_manifest_says(cli: Cli, secret: Path) -> None:
    """Attack second_file. No file travels that no boot method uses, nor one of another kind."""
    image = disk(cli.cwd, "vmdk")
    files = [{"role": "disk", "path": image.name, "format": "vmdk", "size": image.stat().st_size, "virtual_size": SIZE,
              "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}]
    extra = cli.cwd / "initrd.img"
    extra.write_text("# Disk DescriptorFile\n")
    files.append({"role": "initrd", "path": extra.name, "format": "cpio", "size": extra.stat().st_size,
                  "sha256": hashlib.sha256(extra.read_bytes()).hexdigest()})
    manifest = {"schema": 1, "name": "extra", "boot": ["disk"], "files": files, "firmware": "bios"}
    (cli.cwd / "manifest.yaml").write_text(json.dumps(manifest))
    refused = cli("image", "import", "manifest.yaml")
    assert refused.status == 210 and "no boot method of disk uses the initrd" in refused.err
