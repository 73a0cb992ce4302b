"""Disk headers made by hand: what is recognised, and what would make QEMU read other files is refused."""

from __future__ import annotations

import contextlib
import struct
import uuid
from pathlib import Path

import pytest

from vmjob.errors import ImageCorrupt, ImageError, ImageMissing, ImageRefused
from vmjob.image import formats, partitions

pytestmark = pytest.mark.unit

MIB = 2**20


@pytest.fixture(autouse=True)
def no_qemu_img(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about our own reading of headers."""
    monkeypatch.setattr(formats, "_whole", lambda path, form: None)
    monkeypatch.setattr(formats, "_first", lambda path, form: path.read_bytes()[:MIB] if form == "raw" else b"")


def qcow2(*, version: int = 3, backing: bytes = b"", crypt: int = 0, features: int = 0, bits: int = 16,
          extension: tuple[int, bytes] = (0, b"")) -> bytes:
    kind, content = extension
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, 512 if backing else 0, len(backing), bits, 5 * MIB, crypt)
    head = head.ljust(72, b"\0") + struct.pack(">QQQII", features, 0, 0, 4, 104)
    head += struct.pack(">II", kind, len(content)) + content
    return (head.ljust(512, b"\0") + backing).ljust(65536, b"\0")


def vmdk(descriptor: str, capacity: int = 2048) -> bytes:
    head = b"KDMV" + struct.pack("<IIQQQQ", 1, 3, capacity, 128, 1, 20)
    return head.ljust(512, b"\0") + descriptor.encode().ljust(20 * 512, b"\0")


DESCRIPTOR = 'version=1\nparentCID=ffffffff\ncreateType="monolithicSparse"\nRW 2048 SPARSE "x.vmdk"\n'


def vdi(kind: int = 1, link: bytes = b"") -> bytes:
    head = bytearray(4096)
    struct.pack_into("<IIII", head, 0x40, 0xBEDA107F, 0x10001, 0x180, kind)
    struct.pack_into("<QI", head, 0x170, 3 * MIB, MIB)
    head[0x1A8:0x1A8 + len(link)] = link
    return bytes(head)


def vhdx(items: dict[str, bytes]) -> bytes:
    data = bytearray(MIB)
    data[:8] = b"vhdxfile"
    metadata = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
    struct.pack_into("<4sII4x16sQI", data, 192 * 1024, b"regi", 0, 1, metadata, 512 * 1024, 65536)
    struct.pack_into("<8s2xH", data, 512 * 1024, b"metadata", len(items))
    for n, (guid, content) in enumerate(items.items()):
        struct.pack_into("<16sI", data, 512 * 1024 + 32 + 32 * n, uuid.UUID(guid).bytes_le, 65536 + 64 * n)
        at = 512 * 1024 + 65536 + 64 * n
        data[at:at + len(content)] = content
    return bytes(data)


SIZE, PARAMETERS = "2FA54224-CD1B-4876-B211-5DBED83BF4B8", "CAA16737-FA36-4D43-B3B6-33F0AA44E76B"
PARENT = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"
GOOD_VHDX = {PARAMETERS: struct.pack("<II", MIB, 0), SIZE: struct.pack("<Q", 7 * MIB)}


def inspect(folder: Path, data: bytes) -> formats.DiskInfo:
    file = folder / "disk.img"
    file.write_bytes(data)
    return formats.inspect_disk(file)


@pytest.mark.parametrize(("data", "form", "size"), [
    (qcow2(), "qcow2", 5 * MIB), (qcow2(version=2), "qcow2", 5 * MIB), (qcow2(features=0b11001), "qcow2", 5 * MIB),
    (vmdk(DESCRIPTOR), "vmdk", MIB), (vmdk(DESCRIPTOR.replace("monolithicSparse", "streamOptimized")), "vmdk", MIB),
    (vdi(), "vdi", 3 * MIB), (vhdx(GOOD_VHDX), "vhdx", 7 * MIB),
])
def test_recognised(tmp_path: Path, data: bytes, form: str, size: int) -> None:
    found = inspect(tmp_path, data)
    assert (found.format, found.virtual_size) == (form, size)


@pytest.mark.parametrize(("data", "said"), [
    (qcow2(backing=b"/etc/shadow"), "backing file is '/etc/shadow'"),
    (qcow2(version=2, backing=b"json:{\"driver\":\"file\"}"), "backing file is 'json:"),
    (qcow2(features=4), "external file"),
    (qcow2(extension=(0x44415441, b"/etc/passwd\0\0\0\0\0")), "data file '/etc/passwd"),
    (qcow2(crypt=2), "encrypted"), (qcow2(extension=(0x0537BE77, b"x" * 16)), "encrypted"),
    (qcow2(features=1 << 9), "unknown qcow2 features 0x200"), (qcow2(version=4), "version 4"), (qcow2(bits=60), "2^60"),
    (vmdk(DESCRIPTOR.replace("ffffffff", "12345678")), "parent"),
    (vmdk(DESCRIPTOR + 'parentFileNameHint="/etc/passwd"\n'), "parent"),
    (vmdk(DESCRIPTOR.replace("monolithicSparse", "monolithicFlat")), "monolithicFlat"),
    (vmdk(DESCRIPTOR + 'RW 2048 FLAT "/etc/passwd" 0\n'), "2 extents"),
    (vmdk(DESCRIPTOR.replace("x.vmdk", "/etc/x.vmdk")), "/etc/x.vmdk"),
    (vmdk(DESCRIPTOR, capacity=0), "without its data inside"),
    (b"# Disk DescriptorFile\n" + DESCRIPTOR.encode(), "names its data in other files"),
    (vdi(4), "parent"), (vdi(1, b"\1" * 16), "parent"), (vdi(9), "type 9"),
    (vhdx({**GOOD_VHDX, PARENT: b""}), "parent"),
    (vhdx({**GOOD_VHDX, PARAMETERS: struct.pack("<II", MIB, 2)}), "parent"),
    (b"\x1f\x8b" + b"x" * 5000, "gzip"), (b"hello" * 2000, "no disk format"), (b"", "no disk format"),
])
def test_refused_with_the_reason(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        inspect(tmp_path, data)
    assert said in caught.value.message and "disk.img" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("data", [qcow2()[:30], qcow2()[:90], vmdk(DESCRIPTOR)[:50], vdi()[:100], qcow2(features=2),
                                  vhdx({PARAMETERS: b"\0" * 8})])
def test_cut_short(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImageError):
        inspect(tmp_path, data)


def huge(data: bytes, layout: str, at: int, *numbers: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *numbers)
    return bytes(changed)


@pytest.mark.parametrize("number", [2**60, 2**63 - 1, 2**63, 2**64 - 1])
def test_numbers_out_of_all_bounds(tmp_path: Path, number: int) -> None:
    """Attacks formats_crash and crash: places at which no file has a byte, and headers that end where they begin."""
    small = number % 2**32
    for data in (huge(vmdk(DESCRIPTOR), "<Q", 28, number), huge(vmdk(DESCRIPTOR), "<Q", 36, number),
                 huge(vmdk(DESCRIPTOR), "<Q", 12, number), huge(vmdk(DESCRIPTOR)[:72], "<Q", 56, number),
                 huge(qcow2(), ">QI", 8, number, 5), huge(qcow2(), ">Q", 24, number),
                 huge(qcow2()[:104], ">I", 100, small),
                 huge(qcow2(features=1), ">I", 100, 2**32 - 1), huge(vdi(), "<Q", 0x170, number),
                 huge(vhdx(GOOD_VHDX), "<Q", 192 * 1024 + 32, number),
                 huge(gpt(b"", LINUX), "<Q", 512 + 72, number), huge(gpt(b"", LINUX), "<I", 512 + 80, 2**32 - 1),
                 gpt(b"", LINUX)[:570]):
        with contextlib.suppress(ImageError):  # or it is none of what is read
            inspect(tmp_path, data)
        for form in ("qcow2", "vmdk", "vdi", "vhdx", "raw"):
            with pytest.raises(ImageError):
                formats.check_header(tmp_path / "disk.img", form, MIB + 512)


def test_every_prefix_gets_a_named_error(tmp_path: Path) -> None:
    """Hostile bytes never become a traceback."""
    for whole in (qcow2(extension=(5, b"y" * 64)), vmdk(DESCRIPTOR), vdi(), vhdx(GOOD_VHDX)):
        for length in [*range(0, 600, 7), 4096, 11000]:
            with contextlib.suppress(ImageError):
                inspect(tmp_path, whole[:length])


def mbr(code: bytes, *entries: tuple[int, int, int]) -> bytes:
    head = bytearray(MIB)
    head[:len(code)] = code
    for n, (kind, start, count) in enumerate(entries):
        struct.pack_into("<B3xB3xII", head, 446 + 16 * n, 0, kind, start, count)
    head[510:512] = b"\x55\xaa"
    return bytes(head)


def gpt(code: bytes, *kinds: str) -> bytes:
    head = bytearray(mbr(code, (0xEE, 1, 0xFFFFFFFF)))
    struct.pack_into("<8s24xQ32xQII", head, 512, b"EFI PART", 2047, 2, 128, 128)
    for n, kind in enumerate(kinds):
        struct.pack_into("<16s16xQQ", head, 1024 + 128 * n, uuid.UUID(kind).bytes_le, 34, 2000)
    return bytes(head)


ESP, BIOS = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "21686148-6449-6E6F-744E-656564454649"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"


@pytest.mark.parametrize(("head", "firmware"), [
    (mbr(b"\xeb\x63\x90", (0x83, 1, 9)), "bios"), (mbr(b"", (0x83, 1, 9)), ""), (mbr(b"", (0xEF, 1, 9)), "uefi"),
    (gpt(b"\xeb\x63", LINUX, BIOS, ESP), "bios"), (gpt(b"", LINUX, ESP), "uefi"), (gpt(b"", LINUX), ""),
    (bytes(MIB), ""), (b"", ""),
])
def test_firmware_guess(head: bytes, firmware: str) -> None:
    assert partitions.firmware(head) == firmware


@pytest.mark.parametrize(("head", "short"), [(mbr(b"x", (0x83, 1, 2047)), MIB - 512), (gpt(b"", ESP), MIB - 512)])
def test_raw_must_reach_its_last_partition(tmp_path: Path, head: bytes, short: int) -> None:
    assert inspect(tmp_path, head).format == "raw"
    with pytest.raises(ImageCorrupt, match="cut short"):
        inspect(tmp_path, head[:short])


def test_not_there_and_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing):
        formats.inspect_disk(tmp_path / "none")
    with pytest.raises(ImageRefused):
        formats.inspect_disk(Path("/dev/null"))
