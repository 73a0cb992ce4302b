"""A Debian image from a recipe: mmdebstrap -> tree -> ext4 -> compressed qcow2, and kernel, initramfs, manifest.

Without root where the kernel lets users have namespaces, with root otherwise; never a loop mount. The same recipe
and package versions give the same bytes: see assemble.sh and ext4.py for what is made equal.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vmjob.core import process
from vmjob.core.errors import BuildFailed, CommandFailed, HostError
from vmjob.core.files import hash_file, whole
from vmjob.core.machinetext import lines, read
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.image import manifest
from vmjob.image.build import debian, ext4, guestfiles, micro, pip
from vmjob.image.build import recipe as recipes
from vmjob.image.build.recipe import Recipe
from vmjob.image.layers import qcow2

# Light, but a whole Debian: it boots with systemd, and its user finds what a batch node has.
BASE = ("systemd", "systemd-sysv", "udev", "kmod", "iproute2", "udhcpc", "busybox-static", "passwd", "util-linux",
        "tar", "gzip", "ca-certificates", "procps")
_EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_INCLUDED = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
_STEPS = 7
# All of this machine's environment that the tree's programs may see. Anything else is about this machine, and would
# decide what the image holds, or that it cannot be built (CONDOR_CONFIG, PYTHONPATH, LD_PRELOAD, …).
_KEPT = re.compile(r"PATH|HOME|TMPDIR|(HTTPS?|FTP|ALL|NO)_PROXY", re.IGNORECASE)


def build(recipe: Path, out: Path, reporter: Reporter) -> Manifest:
    """Build the image that the file ``recipe`` describes into the folder ``out``: disk.qcow2, vmlinuz, initrd.img
    and manifest.yaml, the manifest last. Takes a minute or two, and a mirror of Debian.

    Raises ImageError (recipe), BuildFailed, HostError or CommandMissing (this machine); scratch space is in TMPDIR
    and is freed.
    """
    plan = recipes.load(recipe)
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("qemu-img", "qemu-utils"), ("unshare", "util-linux"),
                          ("mkfs.ext4", "e2fsprogs")):
        process.require(tool, package)
    with ExitStack() as stack:
        bar = stack.enter_context(reporter.bar(f"build {plan.name}", _STEPS, "steps"))
        namespace = _namespace()
        work = stack.enter_context(_workspace(namespace))
        try:
            return _build(plan, work, out, namespace, lambda: bar.advance(1))
        except CommandFailed as failed:
            raise BuildFailed(f"{recipe}: {failed.message}", failed.hint or _tail(failed.output)) from failed


def _build(plan: Recipe, work: Path, out: Path, namespace: Sequence[str], step: Callable[[], None]) -> Manifest:
    root, overlay = work / "root", work / "overlay"
    (work / "stamp").touch()
    began = time.time() - 3600  # an archive keeps whole seconds; no package in it is as young as an hour
    os.utime(work / "stamp", (began, began))
    _bootstrap(plan, work / "root.tar", namespace)
    step()
    # device nodes cannot be made in a user's namespace; every boot mounts devtmpfs there anyway
    process.run([*namespace, "tar", "-xpf", work / "root.tar", "-C", root, "--numeric-owner", "--exclude=./dev/*"])
    (work / "root.tar").unlink()
    step()
    guestfiles.write(plan, overlay)
    wheels = pip.install(plan.pip, root, overlay) if plan.pip else ()
    step()
    epoch = _assemble(plan, work, namespace)
    step()
    files = [micro.write_file(out, "kernel", "vmlinuz", "bzimage", micro.kernel_of(root)[0].read_bytes()),
             micro.write_file(out, "initrd", "initrd.img", "cpio", _initramfs(root))]
    step()
    raw = work / "disk.raw"
    process.run([*namespace, *ext4.mkfs_argv(root, raw, plan.size)], env={**os.environ, **ext4.mkfs_environment(epoch)},
                hint="is the image larger than its size? see 'size' in the recipe")
    ext4.settle(raw, epoch)
    step()
    files.append(_compress(raw, out / "disk.qcow2", plan.size))
    made = Manifest(plan.name, tuple(files), (Boot.JOB, Boot.SYSTEM), cmdline="net.ifnames=0", user=plan.users[0],
                    needs_memory=plan.needs_memory, needs_cpus=plan.needs_cpus, description=plan.description,
                    made_from=(f"debian/{plan.suite}", *_versions(root, plan), *wheels), sources=plan.sources)
    (out / manifest.FILE_NAME).write_text(manifest.dump(made))
    step()
    return made


def mmdebstrap_argv(plan: Recipe, tar: Path, mode: str, hook: str) -> list[str]:
    """The command line of mmdebstrap. ``mode``: root or unshare; ``hook``: a shell command for the finished tree."""
    words = ["mmdebstrap", f"--mode={mode}", "--variant=apt", "--format=tar", "--architectures=amd64", "--quiet",
             "--include=" + ",".join([*BASE, *plan.packages]), '--aptopt=Apt::Install-Recommends "false"']
    words += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    words += [f"--dpkgopt=path-include={pattern}" for pattern in _INCLUDED]
    words += [f"--customize-hook={hook}", plan.suite, str(tar)]
    return [*words, plan.mirror] if plan.mirror else words


def _bootstrap(plan: Recipe, tar: Path, namespace: Sequence[str]) -> None:
    # the hook sees no file of ours: in its namespace it is somebody else
    script = shlex.quote(micro.package_file("image/build/kernel-hook.sh").decode())
    hook = f'VMJOB_KERNEL={shlex.quote(plan.kernel)} sh -c {script} hook "$1"'
    # as root it mounts things in its tree: in a namespace they are nobody else's, and go away with it
    around, mode = (namespace, "root") if os.getuid() == 0 else ((), "unshare")
    process.run([*around, *mmdebstrap_argv(plan, tar, mode, hook)],
                env={**_environment(), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"})


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}


def _assemble(plan: Recipe, work: Path, namespace: Sequence[str]) -> int:
    """Lay our files over the tree, run the recipe's commands, make it equal; the time all builds agree on."""
    (work / "commands").write_text("".join(f"{command}\n" for command in plan.commands))
    env = {**_environment(), "ROOT": str(work / "root"), "OVERLAY": str(work / "overlay"),
           "USERS": " ".join(plan.users), "COMMANDS": str(work / "commands"), "STAMP": str(work / "stamp"),
           "RESULT": str(work / "epoch")}
    script = micro.package_file("image/build/assemble.sh").decode()
    try:
        process.run([*namespace, "sh", "-c", script, "assemble"], env=env)
    except CommandFailed as failed:
        where = "commands" if plan.commands else "the tree"
        raise BuildFailed(f"{plan.name}: {where}: failed with status {failed.returncode}",
                          _tail(failed.output) or "it printed nothing") from failed
    return int((work / "epoch").read_text())


def _initramfs(root: Path) -> bytes:
    # built into the cloud kernel, modules of the generic one
    return micro.initramfs(root / "bin/busybox", debian.modules_folder(root), ("crc32c_generic", "ext4")).pack()


def _compress(raw: Path, target: Path, size: int) -> ImageFile:
    with whole(target) as spare:
        qcow2.pack(raw, spare)
    sha256, length = hash_file(target)
    return ImageFile("disk", target.name, "qcow2", length, sha256, size)


def _versions(root: Path, plan: Recipe) -> list[str]:
    """``package=version`` of the kernel and of what the recipe names."""
    status = read(root / "var/lib/dpkg/status")
    have = dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE))
    asked = [re.split(r"[:=/]", word)[0] for word in plan.packages]
    return [(root / "usr/lib/vmjob/kernel").read_text().strip(), *(f"{p}={have[p]}" for p in asked if p in have)]


# ---------------------------------------------------------------- namespaces


def _namespace() -> list[str]:
    """The words that run a command as root of a tree: really root, or root of a user namespace.

    Raises HostError where the kernel or /etc/subuid does not let an ordinary user do that.
    """
    words = [process.require("unshare", "util-linux"), "--mount", "--pid", "--fork", "--kill-child"]
    if os.getuid() == 0:
        return words
    words += ["--user", "--map-root-user", "--map-auto"]
    try:
        process.run([*words, "true"])
    except CommandFailed as failed:
        raise HostError(f"this user may not have namespaces here: {failed.message}",
                        "let root run: apt-get install uidmap; usermod --add-subuids 100000-165535 "
                        "--add-subgids 100000-165535 USER; or build as root") from failed
    return words


@contextmanager
def _workspace(namespace: Sequence[str]) -> Iterator[Path]:
    """Scratch space that also goes away with files of other users of the namespace in it."""
    with tempfile.TemporaryDirectory(prefix="vmjob-build-") as folder:
        work = Path(folder)
        try:
            for name in ("root", "overlay"):
                (work / name).mkdir()
            yield work
        finally:
            process.run([*namespace, "rm", "-rf", "--one-file-system", work / "root"], check=False)


def _tail(output: str) -> str:
    return "the last it printed: " + " | ".join(lines(output)[-3:]) if output else ""
