"""What the first MiB of a disk tells: partition table, which firmware boots it, where it must end. Pure functions."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

SECTOR = 512
_BIOS_BOOT = uuid.UUID("21686148-6449-6E6F-744E-656564454649").bytes_le
_ESP = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").bytes_le
# offset and magic of file systems that may fill a disk without a partition table
_FILE_SYSTEMS = ((1080, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (0x8001, b"CD001"), (0, b"hsqs"),
                 (54, b"FAT"), (82, b"FAT32"), (3, b"NTFS"), (0x1003, b"LVM2"))


@dataclass(frozen=True)
class Partition:
    """``kind``: the type byte of MBR or the 16 bytes of GPT; ``end`` in bytes, exclusive."""

    kind: bytes
    end: int


def mbr(head: bytes) -> list[Partition]:
    """Entries of a DOS partition table; a boot sector of a FAT file system has the same signature and none."""
    if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
        return []
    found = []
    for n in range(4):
        status, kind, start, count = struct.unpack_from("<B3xB3xII", head, 446 + 16 * n)
        if status not in (0, 0x80):
            return []
        if kind and count:
            found.append(Partition(bytes([kind]), (start + count) * SECTOR))
    return found


def gpt(head: bytes) -> list[Partition]:
    """Entries of a GPT with sectors of 512 bytes."""
    if head[SECTOR:SECTOR + 8] != b"EFI PART" or len(head) < 2 * SECTOR:
        return []
    table, count, size = struct.unpack_from("<QII", head, SECTOR + 72)
    found = []
    for n in range(min(count, 1024) if size >= 128 else 0):
        at = table * SECTOR + n * size
        if at + 128 > len(head):
            break
        kind = head[at:at + 16]
        if any(kind):
            found.append(Partition(kind, (struct.unpack_from("<Q", head, at + 40)[0] + 1) * SECTOR))
    return found


def end(head: bytes) -> int:
    """Bytes the disk must have at least, as the partition table tells; 0 where there is none. GPT keeps a copy of
    itself in the last sectors."""
    if gpt(head):
        backup = struct.unpack_from("<Q", head, SECTOR + 32)[0]
        return max((int(backup) + 1) * SECTOR, *(p.end for p in gpt(head)))
    return max((p.end for p in mbr(head) if p.kind != b"\xee"), default=0)


def firmware(head: bytes) -> str:
    """``bios`` or ``uefi``, a guess; empty where nothing on this disk boots by firmware."""
    kinds = {p.kind for p in gpt(head)}
    code = any(head[:440])
    if kinds:
        if _BIOS_BOOT in kinds:
            return "bios"
        if _ESP in kinds:
            return "uefi"
        return "bios" if code else ""
    table = mbr(head)
    if any(p.kind == b"\xef" for p in table) and not code:
        return "uefi"
    return "bios" if table and code else ""


def looks_like_disk(head: bytes) -> bool:
    """Whether a raw file begins like a disk: a partition table or a file system."""
    return bool(gpt(head) or mbr(head)) or any(head[at:at + len(magic)] == magic for at, magic in _FILE_SYSTEMS)
