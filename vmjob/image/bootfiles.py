"""Kernels and initial file systems: of the kind that their manifest says, read from their own bytes.

QEMU tries a file given as a kernel as several kinds of program in turn. One of them is refused here: a multiboot
program, for which QEMU takes the name of the initial file system as a list of modules with arguments. Layouts: Linux'
Documentation/arch/x86/boot.rst, the ELF and the Multiboot specification.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from vmjob.core.errors import ImageRefused
from vmjob.core.model import ImageFile

_MULTIBOOT, _MULTIBOOT_WITHIN = (0x1BADB002).to_bytes(4, "little"), 8192
_ELF64_X86 = b"\x7fELF\x02\x01\x01"
# cpio (new, with checksums), and what Linux unpacks: gzip, xz, zstd, bzip2, lzma, lzo, lz4
_INITRDS = (b"070701", b"070702", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh", b"\x5d\0\0",
            b"\x89LZO\0\r\n\x1a\n", b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18")
_HINT = "take the kernel and the initrd out of the image's own /boot, as they are there"


def check(file: ImageFile, path: Path, shown: Optional[Path] = None) -> None:
    """Refuse a kernel that is not of its format (elf, bzimage), and an initrd that Linux does not unpack. ``shown``
    stands for ``path`` in messages. Raises ImageRefused, OSError."""
    if file.role not in ("kernel", "initrd"):
        return
    with path.open("rb") as opened:
        head = opened.read(_MULTIBOOT_WITHIN)
    name = shown or path
    if file.role == "initrd":
        if not head.lstrip(b"\0").startswith(_INITRDS):  # zeros may stand between its parts, and before them
            raise ImageRefused(f"{name} is no cpio archive that a kernel unpacks", _HINT)
    elif file.format == "bzimage":
        if head[0x202:0x206] != b"HdrS":
            raise ImageRefused(f"{name} is no bzImage of Linux, as its manifest says", _HINT)
    elif not head.startswith(_ELF64_X86):
        raise ImageRefused(f"{name} is no ELF program for x86_64, as its manifest says", _HINT)
    elif head[0x202:0x206] == b"HdrS" or _multiboot(head):
        raise ImageRefused(f"{name} is more than the ELF kernel that its manifest says", _HINT)


def _multiboot(head: bytes) -> bool:
    """Where QEMU looks: at every fourth byte of the first 8 KiB, for the magic number with a right checksum."""
    at = head.find(_MULTIBOOT)
    while at >= 0:
        words = [int.from_bytes(head[at + n:at + n + 4], "little") for n in (0, 4, 8)]
        if at % 4 == 0 and sum(words) % 2**32 == 0:
            return True
        at = head.find(_MULTIBOOT, at + 1)
    return False
