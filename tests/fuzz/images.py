"""What an image maker writes: disks, kernels, layers, manifests, lists and their signatures."""

from __future__ import annotations

import dataclasses
import json
import struct
from contextlib import suppress
from pathlib import Path

from tests.fuzz.target import CORPUS, target
from vmjob.endorsement import Endorser
from vmjob.errors import EndorsementRefused, ImageCorrupt, ImageError, ImageRefused
from vmjob.image import (
    apply,
    authorities,
    bootfiles,
    delta,
    formats,
    imagelist,
    manifest,
    partitions,
    smime,
    subscriptions,
    versions,
    x509,
)
from vmjob.manifests import manifest_from_dict, manifest_to_dict
from vmjob.model import ImageFile

_SIZE = 1 << 20
_MANIFEST = {"schema": 1, "name": "m", "boot": ["system", "disk"], "cmdline": "a b", "user": "me",
             "needs": {"memory": "1GiB", "cpus": 1}, "sources": ["https://h.example/x/"], "made_from": ["bash=5"],
             "files": [{"role": "disk", "path": "d", "format": "qcow2", "size": 1, "sha256": "c" * 64,
                        "virtual_size": 5},
                       {"role": "kernel", "path": "k", "format": "elf", "size": 1, "sha256": "d" * 64},
                       {"role": "initrd", "path": "i", "format": "cpio", "size": 1, "sha256": "e" * 64}]}


def _valid(name: str) -> list[bytes]:
    """Seeds that are files: what takes openssl to make."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("valid-*"))]


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
    return [qcow2, vmdk, bytes(vdi), *_tables()]


@target(_disks, ImageRefused, ImageCorrupt)
def disk(data: bytes, place: Path) -> None:
    """A disk file of a format that a manifest names."""
    path = place / "disk"
    path.write_bytes(data)
    form, size = formats.recognised(path)
    assert 0 <= size <= formats.LARGEST, size
    formats.check_header(path, form, size)


def _vhdx() -> list[bytes]:
    region = b"regi" + bytes(4) + struct.pack("<I", 1) + bytes(4) + formats._VHDX_METADATA
    region += struct.pack("<QI", 1 << 20, 1 << 16)
    items = b"metadata" + struct.pack("<HH", 0, 2) + bytes(20)
    for guid, at in ((formats._VHDX_FILE_PARAMETERS, 1 << 16), (formats._VHDX_SIZE, (1 << 16) + 8)):
        items += guid + struct.pack("<I", at) + bytes(12)
    return [region.ljust(64, b"\0") + items.ljust(128, b"\0") + struct.pack("<IIQ", 1 << 25, 0, _SIZE)]


@target(_vhdx, ImageRefused, ImageCorrupt)
def vhdx(data: bytes, place: Path) -> None:
    """A VHDX: its tables, of which the input has the beginnings, in their places in the file."""
    path = place / "disk"
    with path.open("wb") as file:
        file.write(b"vhdxfile")
        for at, part in ((192 * 1024, data[:64]), (1 << 20, data[64:192]), ((1 << 20) + (1 << 16), data[192:])):
            file.seek(at)
            file.write(part)
    assert 0 <= formats.recognised(path)[1] <= formats.LARGEST


def _tables() -> list[bytes]:
    head = bytearray(4096)
    head[510:512], head[512:520] = b"\x55\xaa", b"EFI PART"
    struct.pack_into("<QII", head, 584, 2, 128, 128)
    head[1024:1040] = partitions._ESP
    return [bytes(head)]


@target(_tables)
def table(data: bytes, place: Path) -> None:
    """The partition table and the file systems of a raw disk."""
    assert partitions.firmware(data) in ("", "bios", "uefi")
    assert partitions.end(data) >= 0
    partitions.looks_like_disk(data)


def _kernels() -> list[bytes]:
    return [b"\0\x7fELF\x02\x01\x01" + bytes(100), b"\x01" + (bytes(0x202) + b"HdrS").ljust(1024, b"\0"),
            b"\x02\0\0\0" + b"070701".ljust(50, b"0")]


@target(_kernels, ImageRefused)
def boot_file(data: bytes, place: Path) -> None:
    """A kernel or an initial file system; the first byte says which. A multiboot program is never one."""
    role, form = (("kernel", "elf"), ("kernel", "bzimage"), ("initrd", "cpio"))[data[0] % 3 if data else 0]
    (place / "f").write_bytes(data[1:])
    bootfiles.check(ImageFile(role, "f", form, 1, "a" * 64), place / "f")
    for at in range(0, min(len(data) - 1, 8192) - 11, 4) if form == "elf" else ():
        words = struct.unpack_from("<III", data, at + 1)
        assert words[0] != 0x1BADB002 or sum(words) % 2**32, "QEMU would take it for a multiboot program"


def _layers() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        runs, path = delta.Runs(), Path(folder) / "l"
        for block, source in ((0, delta.NEW), (1, delta.NEW), (5, 7), (6, 8), (9, delta.ZEROS)):
            runs.add(block, source)
        delta.write(path, ["a" * 64], _SIZE, runs, [b"new block".ljust(8192, b"x")])
        return [path.read_bytes()]


@target(_layers, ImageRefused, ImageCorrupt)
def layer(data: bytes, place: Path) -> None:
    """A layer of a disk: runs lie within the disk, and its blocks are as many as it says."""
    (place / "l").write_bytes(data)
    read = delta.read(place / "l", ["a" * 64], _SIZE, _SIZE)
    assert sum(map(len, read.pieces())) == read.runs.new * delta.BLOCK
    last = 0
    for block, count, source in read.runs:
        assert block >= last and count and block + count <= delta.blocks_of(_SIZE)
        assert source >= delta.ZEROS or source + count <= delta.blocks_of(_SIZE)
        last = block + count
    assert apply.becomes(read) > 0


def _manifests() -> list[bytes]:
    import yaml

    return [json.dumps(_MANIFEST).encode(), yaml.dump(_MANIFEST).encode()]


@target(_manifests, ImageError)
def image_manifest(data: bytes, place: Path) -> None:
    """manifest.yaml: what is read can be written, and read again the same."""
    (place / "manifest.yaml").write_bytes(data)
    found = manifest.load(place / "manifest.yaml")
    text = json.dumps(manifest_to_dict(found), allow_nan=False)
    assert manifest_from_dict(json.loads(text), "again") == found
    for file in found.files:
        assert "/" not in file.path and file.path not in ("", ".", "..") and 0 < file.size < 2**63


# ---------------------------------------------------------------- lists and signatures


def _lists() -> list[bytes]:
    entry = {"dc:identifier": "i", "hv:uri": "https://h.example/x", "hv:size": 3, "sl:checksum:sha512": "a" * 128,
             "vmjob:test": {"passed": True, "time": 3}, "dc:date:expires": "2027-01-01T00:00:00Z"}
    return [json.dumps({"hv:imagelist": {
        "dc:identifier": "x", "hv:version": "1", "dc:date:created": "2026-01-01T00:00:00Z",
        "dc:date:expires": "2027-01-01T00:00:00+01:00", "hv:endorser": {"hv:x509": {"hv:dn": "/a", "hv:ca": "/b"}},
        "vmjob:withdrawn": [f"sha256:{'a' * 64}"], "hv:images": [{"hv:image": entry}]}}).encode()]


@target(_lists, EndorsementRefused)
def image_list(data: bytes, place: Path) -> None:
    """The JSON of an image list, and each of its images; no address is a file of whoever reads it."""
    found = imagelist.parse(data)
    imagelist.version_key(found.version)
    imagelist.time_text(found.created)
    imagelist.time_text(found.expires)
    for number in range(len(found.entries)):
        with suppress(EndorsementRefused):
            one = found.image(number)
            imagelist.time_text(one.expires or one.tested)
            assert one.size >= 0 and not (one.uri and imagelist.file_path(one.uri))
    state = subscriptions.Subscription("u", found.identifier, found.endorser, found.version, found.created,
                                       found.expires, "a" * 64)
    subscriptions._write(place / "s.json", json.dumps(dataclasses.asdict(state)).encode())
    assert subscriptions._read(place / "s.json") == state


def _messages() -> list[bytes]:
    return [b'MIME-Version: 1.0\nContent-Type: multipart/signed; protocol="application/x-pkcs7-signature"; '
            b'micalg="sha-256"; boundary="----F"\n\nThis is an S/MIME signed message\n\n------F\n{}\n\n------F\n'
            b"Content-Type: application/x-pkcs7-signature; name=smime.p7s\nContent-Transfer-Encoding: base64\n\n"
            b"MIIB\n\n------F--\n\n"]


@target(_messages, EndorsementRefused)
def message(data: bytes, place: Path) -> None:
    """A signed message taken apart: its text is in it, whatever its line breaks."""
    text, _ = smime._split(data)
    assert text.replace(b"\r\n", b"\n") in data.replace(b"\r\n", b"\n")
    assert text.count(b"\n") == text.count(b"\r\n") == text.count(b"\r")


@target(lambda: _valid("certificate"), ValueError)
def certificate(data: bytes, place: Path) -> None:
    """A certificate, in DER: a name in the slash form is one line of ASCII."""
    found = x509.certificate(data)
    for name in (found.subject, found.issuer):
        assert name.isascii() and name.isprintable() and name.startswith("/"), name


@target(lambda: _valid("signature"), ValueError)
def signature(data: bytes, place: Path) -> None:
    """A PKCS#7 signature, in DER, and the certificates in it."""
    for one in x509.signature(data).certificates:
        with suppress(ValueError):
            x509.certificate(one)


@target(lambda: _valid("revocations"), ValueError)
def revocations(data: bytes, place: Path) -> None:
    """A list of revoked certificates, PEM or DER: when the next one is due."""
    assert x509.crl_expires(data) > -1e11
    x509.certificates_of_pem(data)


def _signing_policies() -> list[bytes]:
    return [b"access_id_CA X509 '/DC=org/CN=Root'\npos_rights globus CA:sign\n"
            b"cond_subjects globus '\"/DC=org/*\" \"/C=PL/*\"'\n"]


@target(_signing_policies, EndorsementRefused)
def signing_policy(data: bytes, place: Path) -> None:
    """An authority's signing policy: without its own name in it, it lets nothing pass."""
    (place / "p").write_bytes(data)
    one = x509.Certificate("/DC=org/CN=Ada", "/DC=org/CN=Root", 0.0, 0.0, b"")
    authorities._may_certify(one, place / "p")
    assert b"root" in data.lower(), "believed by no word of the policy"


def _states() -> list[bytes]:
    one = subscriptions.Subscription("https://h.example/l", "x", Endorser("/a", "/b"), "3", 1.7e9, 1.8e9, "a" * 64,
                                     "t", (f"sha256:{'a' * 64}",), {f"sha256:{'b' * 64}": "why"})
    return [json.dumps(dataclasses.asdict(one)).encode()]


@target(_states, EndorsementRefused)
def subscription(data: bytes, place: Path) -> None:
    """What is known of a list that is followed, as whoever decides by it reads it."""
    (place / "0.json").write_bytes(data)
    digest = f"sha256:{'b' * 64}"
    subscriptions.withdrawn(digest, [place])
    subscriptions.naming(digest, [place])
    for one in subscriptions.listed(place):
        imagelist.version_key(one.version)
        imagelist.time_text(one.created)


def _versions() -> list[bytes]:
    return [b"dpkg\n1:2.3~rc1-4+b1\n1:2.3-4\n", b"rpm\n1:3.0.7-24.el9\n3.0.7^git1\n", b"pip\n1.0rc1.post2\n1!0.9\n",
            b"apk\n1.2.3_rc1-r4\n1.2.3a\n"]


@target(_versions, ValueError)
def version(data: bytes, place: Path) -> None:
    """Versions of packages: their order is one, whichever is asked first; and a range of them."""
    system, one, other = [*data.decode(errors="replace").split("\n"), "", ""][:3]
    if system not in versions._SYSTEMS:
        raise ValueError("no such system")
    assert versions.compare(system, one, other) == -versions.compare(system, other, one)
    assert versions.compare(system, one, one) == 0
    with suppress(ValueError):
        versions.fits(system, one, versions.parse_range(other))
