"""What an image maker writes: disks."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.fuzz.target import target
from vmjob.errors import ImageCorrupt, ImageRefused
from vmjob.image import formats

_SIZE = 1 << 20


def _disks() -> list[bytes]:
    qcow2 = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, _SIZE, 0, 1, 0x30000, 0x10000, 1, 0, 0)
    qcow2 += struct.pack(">QQQII", 0, 0, 0, 4, 104) + bytes(8)
    text = (b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicSparse"\n'
            b'RW 2048 SPARSE "d.vmdk"\n')
    vmdk = (b"KDMV" + struct.pack("<IIQQQQIQ", 1, 3, 2048, 128, 1, 20, 512, 21)).ljust(512, b"\0")
    vmdk += text.ljust(10240, b"\0")
    vdi = bytearray(512)
    vdi[0x40:0x44], vdi[0x4C] = b"\x7f\x10\xda\xbe", 1
    struct.pack_into("<QI", vdi, 0x170, _SIZE, 1 << 20)
    return [qcow2, vmdk, bytes(vdi)]


@target(_disks, ImageRefused, ImageCorrupt)
def disk(data: bytes, place: Path) -> None:
    """A disk file of a format that a manifest names."""
    path = place / "disk"
    path.write_bytes(data)
    info = formats.recognised(path)
    assert 0 <= info[1] <= formats.LARGEST, info
    formats.check_header(path, *info)
