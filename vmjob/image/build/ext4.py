"""A root file system in one file: made by mkfs.ext4 from a folder, and the same bytes every time.

mkfs.ext4 copies each file's change time, which is when the tree was unpacked; ``settle`` sets it afterwards. That
is a few bytes in each inode, for the file system carries no checksums over them: it lives for one job on a
throw-away overlay, so it has no journal either.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from vmjob.core import process
from vmjob.core.errors import BuildFailed

_ID = "766d6a6f-6272-4f6f-8000-000000000001"
_FEATURES = "none,sparse_super,large_file,filetype,dir_index,ext_attr,extent,huge_file,flex_bg,dir_nlink,extra_isize"


def mkfs_argv(tree: Path, disk: Path, size: int) -> list[str]:
    """The command line; it must run where the tree's owners are what they will be in the guest. ``size`` in bytes."""
    tool = process.require("mkfs.ext4", "e2fsprogs")
    return [tool, "-q", "-F", "-d", str(tree), "-L", "vmjob-root", "-U", _ID, "-b", "4096", "-I", "256", "-i", "16384",
            "-m", "0", "-O", _FEATURES, "-E", f"hash_seed={_ID},root_owner=0:0,nodiscard,lazy_itable_init=0",
            str(disk), f"{size // 1024}k"]


def mkfs_environment(epoch: int) -> dict[str, str]:
    """Its own idea of the time, and no distribution's defaults."""
    return {"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch), "MKE2FS_CONFIG": "/dev/null",
            "LC_ALL": "C"}


def settle(disk: Path, epoch: int) -> int:
    """Give all inodes the access, change and creation time ``epoch`` (seconds), and modification times that are
    whole seconds; the number of inodes. Raises BuildFailed where this is not such a file system."""
    with disk.open("r+b") as file:
        file.seek(1024)
        block = file.read(1024)
        if block[56:58] != b"\x53\xef" or struct.unpack_from("<I", block, 100)[0] & 0x400:  # metadata checksums
            raise BuildFailed(f"{disk}: not the file system that mkfs.ext4 was asked for", "report this")
        inodes, = struct.unpack_from("<I", block, 0)
        per_group, = struct.unpack_from("<I", block, 40)
        size, = struct.unpack_from("<H", block, 88)
        changed = 0
        for group in range((inodes + per_group - 1) // per_group):
            file.seek(4096 + 32 * group)
            start = struct.unpack("<I", file.read(32)[8:12])[0] * 4096
            changed += _settle_table(file, start, per_group, size, epoch)
    return changed


def _settle_table(file: BinaryIO, start: int, count: int, size: int, epoch: int) -> int:
    """One group's inode table; tables end where only empty inodes follow, so that holes stay holes."""
    file.seek(start)
    table = bytearray(file.read(count * size))
    used = [at for at in range(0, len(table), size) if table[at:at + 2] != b"\0\0"]
    for at in used:
        struct.pack_into("<II", table, at + 8, epoch, epoch)  # access, change; then modification stays
        extra, = struct.unpack_from("<H", table, at + 128)
        if extra >= 28:  # nanoseconds of change, modification, access; creation and its nanoseconds
            struct.pack_into("<IIIII", table, at + 132, 0, 0, 0, epoch, 0)
    if used:
        file.seek(start)
        file.write(table[:used[-1] + size])
    return len(used)
