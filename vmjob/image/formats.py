"""What a disk file is, read from its own bytes, and whether it is safe to give to QEMU.

QEMU's probing and its formats' references (backing files, data files, extents) could make it read other files of
the node, so nothing is probed: our own code reads the headers, refuses every reference, and whoever calls QEMU
later names the format. Header layouts: QEMU docs/interop/qcow2.txt, VMware's "Virtual Disk Format 5.0",
MS-VHDX, and block/vdi.c.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional

from vmjob import blockdev, process
from vmjob.errors import CommandFailed, ImageCorrupt, ImageMissing, ImageRefused
from vmjob.image import partitions
from vmjob.machinetext import last_line, lines
from vmjob.units import MIB

_QCOW2_KNOWN = 0b11001  # dirty, compression type, extended L2; not 2 (corrupt) and 4 (external data file)
_NAMED_EXTENTS = re.compile(rb'^[ \t\r\v\f]*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"\n]*)")?', re.MULTILINE)
LARGEST = 2**60  # bytes of a disk; QEMU itself takes no more than 2^63, less in most formats
_HINT = "make a self-contained copy where it comes from: qemu-img convert -O qcow2 OLD NEW"


@dataclass(frozen=True)
class DiskInfo:
    """``format`` is the name of QEMU's driver; ``virtual_size`` in bytes; ``firmware`` bios or uefi, a guess from
    the partition table ("" where it says nothing)."""

    format: str
    virtual_size: int
    firmware: str


def inspect_disk(path: Path) -> DiskInfo:
    """Recognise and check a disk image. Raises ImageMissing, ImageRefused (not safe to boot, or not a disk) or
    ImageCorrupt (cut short), each naming the file and the reason."""
    form, virtual = recognised(path)
    if form != "raw":
        _whole(path, form)
    head = _first(path, form)
    if form == "raw":
        _raw_whole(path, head, virtual)
    return DiskInfo(form, virtual, partitions.firmware(head))


def recognised(path: Path) -> tuple[str, int]:
    """Format and size in bytes of the disk that the file's header promises. Raises as ``inspect_disk``."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ImageRefused(f"{path} is not a regular file", "copy the disk into a file first")
        with path.open("rb") as file:
            return _recognise(file, size, path)
    except FileNotFoundError as missing:
        raise ImageMissing(f"{path}: no such file", "check the path") from missing
    except struct.error as short:
        raise ImageCorrupt(f"{path}: the header is cut short", "fetch it again") from short


def check_header(path: Path, form: str, virtual_size: int, shown: Optional[Path] = None) -> None:
    """Refuse a disk that is not what its manifest says, or that would make QEMU open other files. Reads only the
    header and starts nothing: done before each boot, whichever way the image came. ``shown`` stands for ``path`` in
    messages. Raises ImageRefused, ImageCorrupt."""
    checks = {name: check for name, _, check in _FORMATS}
    name = shown or path
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            # QEMU is told "raw" in so many words, and then looks for nothing in the bytes
            found, size = "raw", path.stat().st_size
            if form != "raw":
                found = next((driver for driver, matches, _ in _FORMATS if matches(head)), "")
                size = checks[found](file, head, name) if found else 0
    except struct.error as short:
        raise ImageCorrupt(f"{name}: the header is cut short", "fetch it again") from short
    if found != form:
        raise ImageRefused(f"{name}: the manifest says {form}, the file is {found or 'of no such format'}", _HINT)
    if size != virtual_size:
        raise ImageRefused(f"{name}: the manifest says a disk of {virtual_size} bytes, its header {size}", _HINT)


def _recognise(file: BinaryIO, size: int, path: Path) -> tuple[str, int]:
    head = file.read(4096)
    for form, matches, check in _FORMATS:
        if matches(head):
            virtual = check(file, head, path)
            if virtual > LARGEST:
                _refuse(path, f"its header promises a disk of {virtual} bytes")
            return form, virtual
    if head[:4] == b"COWD" or head.lstrip().startswith(b"# Disk DescriptorFile"):
        _refuse(path, "a vmdk that names its data in other files")
    for magic, what in ((b"conectix", "a VHD disk"), (b"\x1f\x8b", "compressed with gzip"), (b"QED\0", "a QED disk"),
                        (b"\xfd7zXZ\0", "compressed with xz"), (b"\x28\xb5\x2f\xfd", "compressed with zstd")):
        if head.startswith(magic):
            raise ImageRefused(f"{path} is {what}", "unpack it, or convert it: qemu-img convert -O qcow2 OLD NEW")
    file.seek(0)
    if not partitions.looks_like_disk(file.read(MIB)):
        raise ImageRefused(f"{path}: no disk format known here, no partition table and no file system",
                           "import takes qcow2, raw, vmdk, vdi and vhdx")
    return "raw", size


def _refuse(path: Path, reason: str) -> None:
    raise ImageRefused(f"{path}: {reason}", _HINT)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset`` on, fewer at the file's end: a header may name any number."""
    if offset > os.fstat(file.fileno()).st_size:
        return b""
    file.seek(offset)
    return file.read(length)


# ---------------------------------------------------------------- qcow2


def _check_qcow2(file: BinaryIO, head: bytes, path: Path) -> int:
    version, backing, length = struct.unpack_from(">IQI", head, 4)
    cluster_bits, virtual, crypt = struct.unpack_from(">IQI", head, 20)
    if version not in (2, 3):
        _refuse(path, f"qcow2 version {version} is not known")
    if backing or length:
        name = _read(file, backing, min(length, 1023))
        _refuse(path, f"its backing file is {_shown(name)}: QEMU would read that on the node")
    if crypt:
        _refuse(path, "it is encrypted")
    if not 9 <= cluster_bits <= 21:
        _refuse(path, f"a cluster size of 2^{cluster_bits} is not possible")
    header = 72
    if version == 3:
        features = struct.unpack_from(">Q", head, 72)[0]
        header = struct.unpack_from(">I", head, 100)[0]
        if features & 4:
            _refuse(path, "its data is in an external file: QEMU would read that on the node")
        if features & 2:
            raise ImageCorrupt(f"{path}: marked as corrupt by QEMU", "fetch it again, or qemu-img check -r all FILE")
        if features & ~_QCOW2_KNOWN:
            _refuse(path, f"unknown qcow2 features {features & ~_QCOW2_KNOWN:#x}")
    _check_extensions(file, header, 1 << cluster_bits, path)
    return int(virtual)


def _check_extensions(file: BinaryIO, start: int, end: int, path: Path) -> None:
    """The header extensions; two of them name other files whatever the feature bits say."""
    while start + 8 <= end:
        kind, length = struct.unpack(">II", _read(file, start, 8))
        if kind == 0:
            return
        if kind == 0x44415441:
            _refuse(path, f"it names the data file {_shown(file.read(min(length, 1023)))}")
        if kind == 0x0537BE77:
            _refuse(path, "it is encrypted")
        start += 8 + (length + 7) // 8 * 8


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))


# ---------------------------------------------------------------- vmdk, vdi, vhdx


def _check_vmdk(file: BinaryIO, head: bytes, path: Path) -> int:
    """Sparse extent with its descriptor inside: the only kind that is one file."""
    capacity, grain, offset, sectors = struct.unpack_from("<QQQQ", head, 12)
    if not offset or not 0 < sectors <= 2048 or not capacity:  # no capacity: QEMU opens what the descriptor names
        _refuse(path, "a vmdk without its data inside: its parts are other files")
    if offset != 1:  # QEMU reads it from byte 0x200 on, whatever the header says
        _refuse(path, f"its descriptor is at sector {offset}, where QEMU does not look; in a vmdk for QEMU it is at 1")
    if struct.unpack_from("<Q", head, 56)[0] == 2**64 - 1:  # a second header at the end counts then
        size = os.fstat(file.fileno()).st_size
        footer = _read(file, size - 1024, 512) if size >= 2048 and size % 512 == 0 else b""
        if footer[:4] != b"KDMV" or struct.unpack_from("<QQQQ", footer, 12) != (capacity, grain, offset, sectors):
            _refuse(path, "the vmdk header at its end differs from the one at its beginning")
    text = _read(file, 512, max(sectors, 20) * 512).split(b"\0", 1)[0]  # QEMU reads 20 sectors
    kind = re.search(rb'^[ \t\r\v\f]*createType\s*=\s*"([^"\n]*)"', text, re.MULTILINE)
    if not kind or kind.group(1) not in (b"monolithicSparse", b"streamOptimized"):
        _refuse(path, f"a vmdk of the kind {_shown(kind.group(1) if kind else b'')}; one file is monolithicSparse or "
                      "streamOptimized")
    parent = re.search(rb"^[ \t\r\v\f]*parentCID\s*=\s*([0-9a-fA-F]+)", text, re.MULTILINE)
    if b"parentFileNameHint" in text or (parent and parent.group(1).lower() != b"ffffffff"):
        _refuse(path, "a vmdk with a parent disk: QEMU would read that on the node")
    extents = _NAMED_EXTENTS.findall(text)
    if len(extents) != 1 or extents[0][0] != b"SPARSE":
        _refuse(path, f"its descriptor names {len(extents)} extents; one of the kind SPARSE is one file")
    if b"/" in extents[0][1] or b"\\" in extents[0][1] or b":" in extents[0][1]:
        _refuse(path, f"its descriptor names the file {_shown(extents[0][1])}")
    return int(capacity) * 512


def _check_vdi(file: BinaryIO, head: bytes, path: Path) -> int:
    kind = struct.unpack_from("<I", head, 0x4C)[0]
    if kind not in (1, 2):
        _refuse(path, "a VDI with a parent disk" if kind == 4 else f"VDI type {kind} is not known")
    if any(head[0x1A8:0x1C8]):  # the identities of the disk it differs from
        _refuse(path, "a VDI with a parent disk")
    virtual, block = struct.unpack_from("<QI", head, 0x170)
    needed = struct.unpack_from("<I", head, 0x158)[0] + block * struct.unpack_from("<I", head, 0x184)[0]
    if file.seek(0, os.SEEK_END) < needed:  # qemu-img check does not notice
        raise ImageCorrupt(f"{path} is cut short: its blocks reach to {needed}", "fetch it again")
    return int(virtual)


_VHDX_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_VHDX_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_VHDX_PARENT = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")


def _check_vhdx(file: BinaryIO, head: bytes, path: Path) -> int:
    """Walk region table -> metadata table -> file parameters, parent locator and size (both tables' copies)."""
    virtual = 0
    for table in (192 * 1024, 256 * 1024):
        for guid, offset, _ in _vhdx_regions(file, table):
            if guid != _VHDX_METADATA:
                continue
            for item, place in _vhdx_items(file, offset):
                if item == _VHDX_PARENT:
                    _refuse(path, "a VHDX with a parent disk: QEMU would read that on the node")
                if item == _VHDX_FILE_PARAMETERS and struct.unpack("<II", _read(file, place, 8))[1] & 2:
                    _refuse(path, "a VHDX with a parent disk")
                if item == _VHDX_SIZE:
                    virtual = struct.unpack("<Q", _read(file, place, 8))[0]
    if not virtual:
        raise ImageCorrupt(f"{path}: the VHDX metadata is missing", "fetch it again")
    return virtual


def _vhdx_regions(file: BinaryIO, table: int) -> list[tuple[bytes, int, int]]:
    data = _read(file, table, 64 * 1024)
    if data[:4] != b"regi":
        return []
    count = min(struct.unpack_from("<I", data, 8)[0], 2047)
    return [struct.unpack_from("<16sQI", data, 16 + 32 * n) for n in range(count)]


def _vhdx_items(file: BinaryIO, region: int) -> list[tuple[bytes, int]]:
    data = _read(file, region, 64 * 1024)
    if data[:8] != b"metadata":
        return []
    count = min(struct.unpack_from("<H", data, 10)[0], 2047)
    entries = [struct.unpack_from("<16sI", data, 32 + 32 * n) for n in range(count)]
    return [(guid, region + offset) for guid, offset in entries]


_Check = Callable[[BinaryIO, bytes, Path], int]
_FORMATS: tuple[tuple[str, Callable[[bytes], bool], _Check], ...] = (
    ("qcow2", lambda head: head.startswith(b"QFI\xfb"), _check_qcow2),
    ("vmdk", lambda head: head.startswith(b"KDMV"), _check_vmdk),
    ("vdi", lambda head: head[0x40:0x44] == b"\x7f\x10\xda\xbe", _check_vdi),
    ("vhdx", lambda head: head.startswith(b"vhdxfile"), _check_vhdx),
)


# ---------------------------------------------------------------- whole or cut short


def _whole(path: Path, form: str) -> None:
    """``qemu-img check`` finds clusters beyond the end of the file. Where qemu-img is missing, the first boot will."""
    if not process.which("qemu-img"):
        return
    disk = [(str(path.absolute()), form)]
    try:
        blockdev.qemu_img("check", "-q", blockdev.file_name(disk), disks=disk, timeout=600)
    except CommandFailed as failed:
        if failed.returncode == 3:  # leaked clusters only: wasteful, not wrong
            return
        if failed.returncode == 63:  # this format knows no check
            return
        error = next((line for line in lines(failed.output) if line.startswith("ERROR")), "")
        last = error or last_line(failed.output, failed.message)
        raise ImageCorrupt(f"{path}: {form} disk is damaged or cut short: {last}", "fetch it again") from failed


def _raw_whole(path: Path, head: bytes, size: int) -> None:
    end = partitions.end(head)
    if end > size:
        raise ImageCorrupt(f"{path} is cut short: {size} bytes, but its partitions reach to {end}", "fetch it again")


def _first(path: Path, form: str) -> bytes:
    """The first MiB of what the guest will see."""
    if form == "raw":
        with path.open("rb") as file:
            return file.read(MIB)
    disk = [(str(path.absolute()), form)]
    with tempfile.TemporaryDirectory(prefix="vmjob-") as folder:
        out = Path(folder) / "head"
        blockdev.qemu_img("dd", "-O", "raw", f"if={blockdev.file_name(disk)}", f"of={out}", "bs=64k", "count=16",
                          disks=disk, folder=Path(folder), timeout=60)
        return out.read_bytes()
