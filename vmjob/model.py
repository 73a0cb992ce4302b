"""The words of the project as typed, frozen values. No I/O here; every folder may import this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Optional

from vmjob.errors import JobError
from vmjob.glideins import Glidein


class Accel(str, Enum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Network(str, Enum):
    """``nat``: the guest reaches out, nobody reaches in. ``isolated``: a card that leads nowhere. ``none``: no card."""

    NAT = "nat"
    ISOLATED = "isolated"
    NONE = "none"


class Boot(str, Enum):
    """``job``: our agent is init. ``system``: the distribution's init. ``disk``: firmware boots the disk."""

    JOB = "job"
    SYSTEM = "system"
    DISK = "disk"


@dataclass(frozen=True)
class ImageFile:
    """One file of an image. ``role``: disk, kernel, initrd, or layer1, layer2, … (what changes in the disk, one on the
    other); ``format``: a QEMU block driver for a disk (qcow2, raw, vmdk, vdi, vhdx), ``elf`` or ``bzimage`` for a
    kernel, ``cpio`` for an initrd, ``delta`` for a layer (image.delta). ``path`` is relative to the manifest. Sizes in
    bytes; ``virtual_size`` is what the guest sees of a disk, of a layer: of the disk with it."""

    role: str
    path: str
    format: str
    size: int
    sha256: str
    virtual_size: int = 0


@dataclass(frozen=True)
class Manifest:
    """The small description of an image that travels with it (``manifest.yaml``). ``made_from``: what went into it,
    such as package=version. ``sources``: addresses that its files can be fetched from, see ``address``."""

    name: str
    files: tuple[ImageFile, ...]
    boot: tuple[Boot, ...]
    arch: str = "x86_64"
    cmdline: str = ""
    firmware: str = "bios"
    user: str = "vmjob"
    needs_memory: int = 256 * 2**20
    needs_cpus: int = 1
    description: str = ""
    made_from: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """``sha256:…`` over everything that decides what boots; names and descriptions are left out."""
        body = {
            "arch": self.arch,
            "boot": [b.value for b in self.boot],
            "cmdline": self.cmdline,
            "files": [[f.role, f.format, f.size, f.sha256] for f in self.files],
            "firmware": self.firmware,
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files)

    def file(self, role: str) -> Optional[ImageFile]:
        return next((f for f in self.files if f.role == role), None)

    @property
    def layers(self) -> tuple[ImageFile, ...]:
        """What changes the disk, lowest first."""
        return tuple(sorted((f for f in self.files if f.role.startswith("layer")), key=lambda f: int(f.role[5:])))

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk as the guest sees it; 0 where there is none."""
        top = (*self.layers[-1:], self.file("disk"))[0]
        return top.virtual_size if top else 0


def address(source: str, file: ImageFile) -> str:
    """Where ``file`` is at a source of its image: a source that ends in / is a folder that holds all files by their
    path; any other has {path} or {sha256} in it for the file's, or is the address of the image's only file."""
    if source.endswith("/"):
        return source + file.path
    return source.replace("{path}", file.path).replace("{sha256}", file.sha256)


# Brings the bytes of a file of an image from an offset on, from wherever they are.
Fetch = Callable[[ImageFile, int], Iterator[bytes]]


@dataclass(frozen=True)
class Image:
    """An image that is on this machine: the manifest, and the verified local path of each file by role (of an open
    file, where Store.open was to keep it so). ``chain``: its disk as QEMU stacks it, the lowest first; one file where
    there are no layers, none where there is no disk."""

    manifest: Manifest
    paths: dict[str, Path]
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What the job asks for. None: whatever the slot gives. Bytes and seconds."""

    cpus: Optional[int] = None
    memory: Optional[int] = None
    disk: Optional[int] = None
    walltime: Optional[int] = None


@dataclass(frozen=True)
class Input:
    """A file, folder or glob on the submit side, and the path it gets below the guest's work folder
    (empty: its own name)."""

    source: str
    target: str = ""


@dataclass(frozen=True)
class Job:
    """A job as the user means it. Exactly one of ``command``, ``script`` and ``glidein`` is set. ``outputs_to``: the
    address of a folder that the outputs are sent to from the node; empty: they come back with the job."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    script: str = ""
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    outputs_to: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    resources: Resources = field(default_factory=Resources)
    accel: Accel = Accel.AUTO
    network: Network = Network.NAT
    user: str = ""
    boot: Optional[Boot] = None
    glidein: Optional[Glidein] = None

    def __post_init__(self) -> None:
        if isinstance(self.command, str):  # it would be taken letter by letter
            raise JobError("a Job's command is a sequence of words, not one string", 'command=("echo", "hello")')


@dataclass(frozen=True)
class Payload:
    """What is handed to a CE, or walked straight away by ``vmjob run``: the job, its image and the
    archive of its inputs. ``image_files`` says where this side holds each file of the image (by role). ``lists``:
    signed image lists that endorse the image (image.trust). ``token`` is what a glide-in joins its pool with: it
    travels apart from the rest, and is kept in memory alone."""

    job: Job
    manifest: Manifest
    image_files: dict[str, Path]
    input_archive: Optional[Path] = None
    token: str = field(default="", repr=False)
    lists: tuple[Path, ...] = ()


# Bytes that QEMU's emulation keeps translated code in; left alone it takes up to a GiB beside the guest.
TCG_BUFFER = 256 * 2**20


@dataclass(frozen=True)
class Slot:
    """What the batch system granted. None means: it set no limit. Bytes and seconds; ``time_left``
    counts from ``detect`` on. ``guest_memory``: most that a site's policy leaves the guest, whatever QEMU takes beside.
    ``sources`` names who said so (htcondor, slurm, pbs, cgroup, mjf, machine)."""

    kind: str
    scratch: Path
    cpus: int
    memory: int
    disk: int
    time_left: Optional[int] = None
    batch: bool = False
    sources: tuple[str, ...] = ()
    job_id: str = ""
    guest_memory: Optional[int] = None


@dataclass(frozen=True)
class AccelChoice:
    """The accelerator used and why, as the result, the log and the site ad tell it."""

    name: str
    reason: str


@dataclass(frozen=True)
class QemuInfo:
    """The QEMU binary found. ``version`` as (major, minor, micro)."""

    path: str
    version: tuple[int, ...]
    machines: tuple[str, ...] = ()
    netdevs: tuple[str, ...] = ()

    @property
    def version_text(self) -> str:
        return ".".join(str(n) for n in self.version)


@dataclass(frozen=True)
class Granted:
    """What the VM gets after job, image and slot were brought together. Bytes and seconds."""

    cpus: int
    memory: int
    disk: int
    walltime: Optional[int] = None


@dataclass(frozen=True)
class VmSpec:
    """Everything the QEMU command line depends on; see vm.cmdline. Socket paths are relative to
    QEMU's working folder (a private 0700 folder), so that their length never matters. ``chain``: the
    disks below ``overlay``, the lowest first, each a path and its format, told so that QEMU never
    guesses. The image's files are told as places of open ones (vmjob.opened), which ``vmjob plan`` shows by their
    names; ``netdev`` and ``netdev_extra`` come from vm.net.network."""

    qemu: str
    accel: str
    machine: str
    cpus: int
    memory: int
    boot: Boot
    name: str = "vmjob"
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    firmware_code: str = ""
    firmware_vars: str = ""
    overlay: str = ""
    chain: tuple[tuple[str, str], ...] = ()
    input_disk: str = ""
    output_disk: str = ""
    seed_disk: str = ""
    netdev: str = ""
    netdev_extra: tuple[str, ...] = ()
    cpu_model: str = ""
