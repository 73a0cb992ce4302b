"""A whole Debian: boot method ``job``, beside virtme-ng, and beside the same tree booted by firmware and systemd."""

from __future__ import annotations

import os
from pathlib import Path

from bench.common import ROOT, Bench, Goal, Row, alternate, execute, seconds, tool
from vmjob.image.build.cpio import Tree

_MIB = 1 << 20
_MEMORY = ("--memory", "1GiB")
_LABEL = "label: dos\nstart=2048, size=131072, type=c, bootable\nstart=133120, type=83\n"
# The kernel and our initramfs load the drivers; then the second partition, and systemd. vmjob's agent is a unit there.
_INIT = b"""#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
cd /lib/vmjob
for list in order order.net; do while read -r module; do insmod $module; done <$list; done
until mount -t ext4 -o rw,noatime /dev/vda2 /root 2>/dev/null; do usleep 20000; done
for place in dev proc sys; do mount -o move /$place /root/$place; done
exec switch_root /root /sbin/init
"""
_LOADER = """\
DEFAULT linux
LABEL linux
 KERNEL vmlinuz
 INITRD initrd.img
 APPEND console=ttyS0 quiet net.ifnames=0 tsc=reliable no_timer_check
"""


def measure(bench: Bench) -> list[Row]:
    image(bench, "generic")
    firmware(bench, image(bench, "debian"))
    kernel = kernel_for_peer(bench)
    env = bench.environment()

    def job(name: str, *more: str) -> float:
        return seconds(bench.words("run", "-q", "--image", name, *_MEMORY, *more, "--", "true"), env=env)

    def virtme() -> float:
        path = f"{Path(tool('vng')).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        with bench.folder() as shared:
            ran = shared / "ran"
            # its exit status is 255 where the machine whose root it shows has no udev: the file tells that it worked
            took = seconds([tool("vng"), "--run", kernel, "--disable-kvm", "--memory", "1G", "--rwdir", shared, "--",
                            "touch", ran], env={**os.environ, "PATH": path}, cwd=bench.home, check=False)
            if not ran.exists():
                raise RuntimeError("vng did not run its command; see vng --verbose")
        return took

    ours, same_kernel, peer, slow = alternate(
        bench.rounds, lambda: job("bench-debian"), lambda: job("bench-generic"), virtme,
        lambda: job("bench-firmware"))
    return [Row("Debian, boot method job, beside virtme-ng", ours, peer, goal=Goal("ratio", "<=", 0.5),
                peer="vng --run, Debian's generic kernel"),
            Row("the same with virtme-ng's own, the generic kernel", same_kernel, peer, peer="vng --run"),
            Row("Debian, boot method job, beside firmware and systemd", ours, slow, goal=Goal("ratio", "<=", 0.2),
                peer="boot method disk, SeaBIOS, syslinux")]


def image(bench: Bench, name: str) -> Path:
    """The folder of an image from bench/NAME.yaml, built when recipe or agent changed."""
    recipe, folder = ROOT / f"bench/{name}.yaml", bench.home / name
    made = folder / "manifest.yaml"
    parts = [recipe, *(ROOT / "vmjob/image").glob("*.sh"), *(ROOT / "vmjob/guest").glob("*.sh")]
    if not made.exists() or made.stat().st_mtime < max(part.stat().st_mtime for part in parts):
        bench.vmjob("image", "build", recipe, "-o", folder)
    return folder


def kernel_for_peer(bench: Bench) -> Path:
    """Debian's generic kernel with its modules: the cloud kernel has no 9p, which virtme-ng lives on."""
    root = bench.home / "kernel"
    if not list(root.glob("boot/vmlinuz-*")):
        told = execute(["apt-cache", "depends", "--important", "linux-image-amd64"]).stdout.decode()
        package = next(word for word in told.split() if word.startswith("linux-image-") and word[12].isdigit())
        with bench.folder() as work:
            execute(["apt-get", "-q", "download", package], cwd=work)
            execute(["dpkg-deb", "-x", next(work.glob("*.deb")), root])
        execute([tool("depmod"), "-b", root, next(root.glob("lib/modules/*")).name])
    return next(root.glob("boot/vmlinuz-*"))


def firmware(bench: Bench, folder: Path) -> None:
    """The same tree on a disk with a boot loader, registered as bench-firmware; without root or mounts."""
    disk = bench.home / "firmware.raw"
    source = folder / "disk.qcow2"
    if disk.exists() and disk.stat().st_mtime > source.stat().st_mtime:
        return
    with bench.folder() as work:
        tree = Tree()
        tree.file("init", _INIT, 0o755)
        (work / "initrd.img").write_bytes((folder / "initrd.img").read_bytes() + tree.pack())
        (work / "syslinux.cfg").write_text(_LOADER)
        fat = work / "fat"
        with fat.open("wb") as file:
            file.truncate(64 * _MIB)
        execute([tool("mkfs.vfat"), fat])
        execute([tool("mcopy"), "-i", fat, folder / "vmlinuz", work / "initrd.img", work / "syslinux.cfg", "::/"])
        execute([tool("syslinux"), "--install", fat])
        execute(["qemu-img", "convert", "-O", "raw", source, work / "root.raw"])
        whole = work / "disk.raw"
        with whole.open("wb") as file:
            file.truncate((work / "root.raw").stat().st_size + 66 * _MIB)
        (work / "label").write_text(_LABEL)
        execute(["sh", "-c", f"{tool('sfdisk')} -q {whole} <{work / 'label'}"])
        for part, where in (("/usr/lib/syslinux/mbr/mbr.bin", 0), (fat, 1), (work / "root.raw", 65)):
            execute(["dd", f"if={part}", f"of={whole}", "bs=1M", f"seek={where}", "conv=notrunc,sparse", "status=none"])
        execute(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", whole, disk])
    bench.vmjob("image", "import", disk, "--name", "bench-firmware")
