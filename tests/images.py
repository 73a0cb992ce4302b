"""Disk images that tests boot, made from Debian's packages and kept in build/test-images/.

``cloud_disks`` stand for "any cloud image, unmodified": Debian with cloud-init and a boot loader of its own, and
nothing of vmjob. One root file system, once on a disk that a BIOS boots (MBR, syslinux; qcow2) and once on one for
UEFI (GPT, systemd-boot; vmdk). ``built`` is an image made by ``vmjob image build``. No loop mount; as root, or as a
user who may have namespaces. A folder's name holds a digest of its recipe, so a changed recipe is another image;
newer packages of Debian's are not noticed (make clean).
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import BUILD, ROOT, Cli
from vmjob.core import process
from vmjob.core.errors import HostError
from vmjob.image import manifest
from vmjob.image.build import from_recipe

IMAGES = BUILD / "test-images"
SUITE = "bookworm"
# What Debian's own "genericcloud" image is made of, less what only people need.
PACKAGES = ("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "cloud-init",
            "netplan.io", "systemd-resolved", "iproute2", "systemd-boot-efi", "ca-certificates")
TOOLS = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools",
         "sfdisk": "fdisk", "syslinux": "syslinux", "qemu-img": "qemu-utils", "unshare": "util-linux"}
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")

# In MiB. Both disks have the same layout: a FAT file system with what boots, the root, room for GPT's second table.
BOOT_AT, BOOT_SIZE, ROOT_AT, ROOT_SIZE, DISK_SIZE = 1, 64, 65, 1024, 1090
CMDLINE = "root=LABEL=root ro console=tty0 console=ttyS0,115200 consoleblank=0"
SYSLINUX = f"DEFAULT linux\nLABEL linux\n LINUX /vmlinuz\n INITRD /initrd.img\n APPEND {CMDLINE}\n"
SYSTEMD_BOOT = f"title Debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions {CMDLINE}\n"
TABLES = {"bios": f"label: dos\nstart={BOOT_AT}MiB, size={BOOT_SIZE}MiB, type=0c, bootable\n"
                  f"start={ROOT_AT}MiB, size={ROOT_SIZE}MiB, type=83\n",
          "uefi": f"label: gpt\nstart={BOOT_AT}MiB, size={BOOT_SIZE}MiB, type=U\n"
                  f"start={ROOT_AT}MiB, size={ROOT_SIZE}MiB, type=L\n"}

# Ends mmdebstrap's work in its tree, $1.
FINISH = """set -eu
echo 'LABEL=root / ext4 rw,discard,errors=remount-ro 0 1' >"$1/etc/fstab"
echo localhost >"$1/etc/hostname"
: >"$1/etc/machine-id"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
"""


def need(programs: dict[str, str]) -> None:
    """Skip the test where a program (key) is missing, and say which packages (values) have it."""
    missing = sorted({package for program, package in programs.items() if not process.which(program)})
    if missing:
        pytest.skip(f"to build and boot test images: apt-get install {' '.join(missing)}")


def cloud_disks() -> Path:
    """A folder with bios.qcow2 and uefi.vmdk."""
    need(TOOLS)
    if not MBR.exists():
        pytest.skip("to build and boot test images: apt-get install syslinux-common")
    makers = "".join(inspect.getsource(maker) for maker in (_build_cloud_disks, _root, _disk))
    with _kept("cloud", repr((SUITE, PACKAGES, TABLES, SYSLINUX, SYSTEMD_BOOT, FINISH)) + makers) as (target, fresh):
        if fresh:
            target.mkdir()
            _build_cloud_disks(target)
    return target


def built(recipe: Path) -> Path:
    """The folder of an image that the product builds from ``recipe``; its sources are a part of the recipe."""
    need({tool: TOOLS[tool] for tool in ("mmdebstrap", "mkfs.ext4", "qemu-img", "unshare")})
    sources = [*sorted((ROOT / "vmjob/image").rglob("*.*")), ROOT / "vmjob/guest/agent.sh", recipe]
    with _kept(f"built-{recipe.stem}", "".join(p.read_text() for p in sources if p.is_file())) as (target, fresh):
        if fresh:
            done = Cli(IMAGES, IMAGES)("image", "build", recipe.resolve(), "-o", target, "--no-register", timeout=600)
            if done.status and "namespaces" in done.err:
                pytest.skip(done.err.strip())
            assert done.status == 0, done.err
    return target


def register(cli: Cli, image: Path) -> str:
    """Take an image (a folder with a manifest, or a disk) into the store, unless it is there as it is; its name."""
    if image.is_dir():
        made = manifest.load(image)
        name, options, digests = made.name, [], {f.sha256 for f in made.files}
    else:
        name = f"test-{image.stem}"
        options, digests = ["--name", name], {hashlib.sha256(image.read_bytes()).hexdigest()}
    there = cli("image", "inspect", "--json", name)
    if there.status or {file["sha256"] for file in there.json["files"]} != digests:
        taken = cli("image", "import", image.resolve(), *options)
        assert taken.status == 0, taken.err
    return name


# ---------------------------------------------------------------- kept folders


@contextmanager
def _kept(name: str, recipe: str) -> Iterator[tuple[Path, bool]]:
    """The folder for what ``recipe`` makes, and whether it is still to be made; one maker at a time. What fails
    half-way is made again the next time, and what an older recipe made goes away."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    target = IMAGES / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    done = target / ".done"
    with (IMAGES / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            yield target, False
            return
        for old in IMAGES.glob(f"{name}-????????????"):
            shutil.rmtree(old)
        yield target, True
        done.touch()


# ---------------------------------------------------------------- a cloud disk


def _build_cloud_disks(target: Path) -> None:
    try:
        namespace = from_recipe._namespace()
    except HostError as cannot:
        pytest.skip(f"{cannot.message}: {cannot.hint}")
    with tempfile.TemporaryDirectory(prefix="vmjob-test-images-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # mmdebstrap and mkfs are other users in their namespaces
        try:
            _root(work, namespace)
            for firmware, form in (("bios", "qcow2"), ("uefi", "vmdk")):
                kind = ["compression_type=zstd"] if form == "qcow2" else ["subformat=streamOptimized"]
                _run("qemu-img", "convert", "-f", "raw", "-O", form, *(["-c"] if form == "qcow2" else []), "-o", *kind,
                     _disk(work, firmware), target / f"{firmware}.{form}")
        finally:
            _run(*namespace, "rm", "-rf", work / "tree")


def _root(work: Path, namespace: Sequence[str]) -> None:
    """root.ext4, and beside it vmlinuz, initrd.img and systemd-bootx64.efi out of it."""
    # as root it mounts things in its tree: in a namespace they are nobody else's, and go away with it
    around, mode = (namespace, "root") if os.getuid() == 0 else ((), "unshare")
    _run(*around, "mmdebstrap", f"--mode={mode}", "--variant=minbase", "--format=tar", "--quiet",
         '--aptopt=Apt::Install-Recommends "false"',
         *(f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man", "locale", "i18n")),
         f"--include={','.join(PACKAGES)}", f"--customize-hook={FINISH}", SUITE, work / "root.tar")
    (work / "tree").mkdir()
    _run(*namespace, "tar", "-xpf", work / "root.tar", "-C", work / "tree", "--numeric-owner", "--exclude=./dev/*")
    (work / "root.tar").unlink()
    for name, place in (("vmlinuz", "boot/vmlinuz-*"), ("initrd.img", "boot/initrd.img-*"),
                        ("systemd-bootx64.efi", "usr/lib/systemd/boot/efi/systemd-bootx64.efi")):
        (source,) = (work / "tree").glob(place)
        shutil.copyfile(source, work / name)
    _run(*namespace, process.which("mkfs.ext4") or "", "-q", "-F", "-L", "root", "-d", work / "tree",
         work / "root.ext4", f"{ROOT_SIZE}M")


def _disk(work: Path, firmware: str) -> Path:
    """A raw disk: partition table, boot file system, root."""
    disk, boot = work / f"{firmware}.raw", work / f"{firmware}.fat"
    for file, size in ((disk, DISK_SIZE), (boot, BOOT_SIZE)):
        with file.open("wb") as new:
            new.truncate(size * 2**20)
    _run(process.which("sfdisk") or "", "--quiet", disk, input=TABLES[firmware])
    _run(process.which("mkfs.vfat") or "", "-F", "32", "-h", BOOT_AT * 2048, "-n", "BOOT", boot)
    files = {"vmlinuz": work / "vmlinuz", "initrd.img": work / "initrd.img"}
    if firmware == "bios":
        files["syslinux.cfg"] = _text(work / "syslinux.cfg", SYSLINUX)
    else:
        _run("mmd", "-i", boot, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
        files["EFI/BOOT/BOOTX64.EFI"] = work / "systemd-bootx64.efi"
        files["loader/loader.conf"] = _text(work / "loader.conf", "timeout 0\n")
        files["loader/entries/debian.conf"] = _text(work / "debian.conf", SYSTEMD_BOOT)
    for name, source in files.items():
        _run("mcopy", "-i", boot, source, f"::/{name}")
    if firmware == "bios":
        _run("syslinux", "--install", boot)
        _run("dd", f"if={MBR}", f"of={disk}", "bs=440", "count=1", "conv=notrunc")
    for part, at in ((boot, BOOT_AT), (work / "root.ext4", ROOT_AT)):
        _run("dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")
    return disk


def _text(file: Path, text: str) -> Path:
    file.write_text(text)
    return file




def _run(*words: object, input: str = "") -> None:
    done = subprocess.run([str(word) for word in words], input=input, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"})
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}"
