"""The micro image: Debian's cloud kernel and a busybox in memory; made in seconds, without any root.

``initramfs`` is shared with built images, which put their root disk behind it.
"""

from __future__ import annotations

import hashlib
import pkgutil
import tempfile
from pathlib import Path

from vmjob.core import process
from vmjob.core.errors import BuildFailed
from vmjob.core.files import write_whole
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.core.units import MIB
from vmjob.image import manifest
from vmjob.image.build import cpio, debian

KERNEL = "linux-image-cloud-amd64"
# both ways to reach virtio devices: microvm has them memory-mapped, q35 on PCI
MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console")
NET_MODULES = ("virtio_net",)
# what programs expect in /dev besides the kernel's own
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
                "stderr": "/proc/self/fd/2"}
LIMIT = 20 * MIB
_USER = "vmjob"


def build_micro(out: Path, reporter: Reporter) -> Manifest:
    """Make kernel, initramfs and manifest.yaml in the folder ``out``; the same packages give the same bytes.

    Needs apt-get, dpkg-deb and a Debian mirror. Raises CommandMissing, CommandFailed or BuildFailed; then ``out``
    holds no manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmjob-micro-") as folder, reporter.bar("micro image", 4, "steps") as bar:
        work = Path(folder)
        apt = debian.Apt(work)
        kernel_deb, kernel_source = apt.download(apt.resolve(KERNEL))
        busybox_deb, busybox_source = apt.download("busybox-static")
        bar.advance(1)
        debian.unpack(kernel_deb, work / "kernel")
        debian.unpack(busybox_deb, work / "busybox")
        bar.advance(1)
        kernel, _ = kernel_of(work / "kernel")
        tree = initramfs(_busybox_of(work / "busybox"), debian.modules_folder(work / "kernel"))
        _micro_root(tree)
        bar.advance(1)
        files = (write_file(out, "kernel", "vmlinuz", "bzimage", kernel.read_bytes()),
                 write_file(out, "initrd", "initrd.img", "cpio", tree.pack()))
        bar.advance(1)
    made = Manifest("micro", files, (Boot.JOB,), user=_USER, needs_memory=128 * MIB,
                    description="Linux and busybox in memory: for short scripts, tests and probes",
                    made_from=(kernel_source, busybox_source))
    if made.size >= LIMIT:
        raise BuildFailed(f"the micro image would be {made.size / MIB:.1f} MiB", f"{KERNEL} has grown; report this")
    (out / manifest.FILE_NAME).write_text(manifest.dump(made))
    return made


def kernel_of(root: Path) -> tuple[Path, str]:
    """The one kernel in ``root``/boot, and its version. The compressed one: it costs a boot 0.2 s more than the
    ELF file inside, and a tenth of the ELF file travels."""
    found = sorted((root / "boot").glob("vmlinuz-*"))
    if len(found) != 1:
        raise BuildFailed(f"{len(found)} kernels in one image", "name one kernel package")
    return found[0], found[0].name.partition("-")[2]


def _busybox_of(root: Path) -> Path:
    """Its place in the package: /bin until Debian 12, /usr/bin from 13 on."""
    for place in ("usr/bin/busybox", "bin/busybox"):
        if (root / place).is_file():
            return root / place
    raise BuildFailed("no busybox in the package busybox-static", "report this, with this machine's Debian release")


def package_file(name: str) -> bytes:
    """A file shipped in this package, also where the package is a zip file."""
    try:
        data = pkgutil.get_data("vmjob", name)
    except OSError:
        data = None
    if data is None:
        raise BuildFailed(f"{name} is missing from this installation of vmjob", "reinstall vmjob")
    return data


def initramfs(busybox: Path, modules: Path, root: tuple[str, ...] = ()) -> cpio.Tree:
    """The small initramfs of all images: busybox, the modules in loading order, and our /init. ``root``: modules
    that its root disk needs besides."""
    tree = cpio.Tree()
    for folder in ("dev", "proc", "sys", "root", "run", "tmp", "etc"):
        tree.folder(folder)
    tree.device("dev/console", 5, 1)  # the kernel opens it before devtmpfs is there
    tree.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in process.run([busybox, "--list"]).stdout.decode().split():
        if applet != "busybox":
            tree.link(f"bin/{applet}", "busybox")
    tree.file("init", package_file("image/build/initrd.sh"), 0o755)
    tree.file("usr/lib/vmjob/init", package_file("image/build/init.sh"), 0o755)
    for name, target in DEVICE_LINKS.items():
        tree.link(f"usr/lib/vmjob/dev/{name}", target)
    base = debian.load_order(modules, (*MODULES, *root))
    have = [_module_name(path) for path in base]
    for name, order in (("order", base), ("order.net", debian.load_order(modules, NET_MODULES, loaded=have))):
        for path in order:
            tree.file(f"lib/vmjob/{_module_name(path)}.ko", debian.module_bytes(path))
        tree.file(f"lib/vmjob/{name}", "".join(f"{_module_name(path)}.ko\n" for path in order).encode())
    return tree


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _micro_root(tree: cpio.Tree) -> None:
    """What makes the initramfs a small system of its own."""
    tree.file("lib/vmjob/micro", b"")
    tree.file("usr/lib/vmjob/agent", package_file("guest/agent.sh"), 0o755)
    tree.file("etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{_USER}:x:1000:1000::/home/{_USER}:/bin/sh\n".encode())
    tree.file("etc/group", f"root:x:0:\ntty:x:5:\n{_USER}:x:1000:\n".encode())
    tree.file("etc/hostname", b"vmjob\n")
    tree.file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    tree.folder("tmp", 0o1777)
    tree.folder("root", 0o700)
    tree.folder(f"home/{_USER}", 0o755, owner=1000)
    for name in ("sbin", "usr/bin", "usr/sbin"):  # where scripts look: #!/usr/bin/env
        tree.link(name, "/bin")


def write_file(out: Path, role: str, name: str, form: str, data: bytes) -> ImageFile:
    """Write one file of an image into the folder ``out``; one that a VM has open stays as it is."""
    write_whole(out / name, data)
    return ImageFile(role, name, form, len(data), hashlib.sha256(data).hexdigest())
