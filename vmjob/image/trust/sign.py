"""Making an image list: the document that an endorser signs, from images and what she says of them."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from vmjob.core import files
from vmjob.core.errors import JobError
from vmjob.core.model import ImageFile, Manifest, address
from vmjob.core.progress import Bar
from vmjob.image.manifest import to_document
from vmjob.image.trust.endorsement import Endorser
from vmjob.image.trust.imagelist import MANIFEST, TEST, WITHDRAWN, file_path, time_text

# What a list of HEPiX' must tell of an image; vmcatcher refuses one without.
_FORMATS = {"qcow2": "QCOW2", "raw": "RAW", "vmdk": "VMDK", "vdi": "VDI", "vhdx": "VHDX"}


@dataclass(frozen=True)
class Heading:
    """What an endorser says of a list; ``uri``: where it will be published. Times in seconds since 1970."""

    identifier: str
    version: str
    created: float
    expires: float
    title: str
    uri: str
    description: str = ""
    source: str = ""
    creator: str = ""
    email: str = ""


def document(heading: Heading, endorser: Endorser, images: Sequence[Mapping[str, Any]],
             withdrawn: Iterable[str] = ()) -> dict[str, Any]:
    """The body of hv:imagelist, with all that HEPiX' tools demand; ``images``: entries (hv:image), in order."""
    name = re.sub(r".*/CN=", "", endorser.dn)
    body: dict[str, Any] = {
        "dc:identifier": heading.identifier, "dc:title": heading.title,
        "dc:description": heading.description or heading.title, "dc:source": heading.source or heading.uri,
        "dc:date:created": time_text(heading.created), "dc:date:expires": time_text(heading.expires),
        "hv:version": heading.version, "hv:uri": heading.uri,
        "hv:endorser": {"hv:x509": {"hv:dn": endorser.dn, "hv:ca": endorser.ca,
                                    "hv:email": heading.email or "-", "dc:creator": heading.creator or name}},
        "hv:images": [{"hv:image": dict(one)} for one in images]}
    gone = sorted(set(withdrawn))
    return {**body, WITHDRAWN: gone} if gone else body


def entry(manifest: Manifest, sha512: str, heading: Heading, *, group: str = "",
          test: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
    """An image of a list. ``sha512`` is of ``main_file``; ``test``: the outcome of its functionality test. Its
    identifier stays the same from version to version of the list. Raises JobError where it has no address to tell."""
    sources = tuple(one for one in manifest.sources if not one.startswith("file:"))
    main = main_file(manifest)
    uris = [uri for uri in (address(one, main) for one in sources) if not file_path(uri)]
    if not uris:
        raise JobError(f"{manifest.name}: an image in a list needs an address that others can fetch it from",
                       "--source https://…/ (ending in / where all its files are in that folder)")
    listed = Manifest(**{**vars(manifest), "sources": sources})
    body: dict[str, Any] = {
        "dc:identifier": image_identifier(heading.identifier, manifest.name), "dc:title": manifest.name,
        "dc:description": manifest.description or manifest.name, "hv:version": heading.version, "hv:uri": uris[0],
        "hv:size": main.size, "sl:checksum:sha512": sha512, "hv:hypervisor": "QEMU,KVM",
        "hv:format": _FORMATS.get(main.format, main.format), "hv:ram_minimum": str(manifest.needs_memory // 2**20),
        "hv:core_minimum": str(manifest.needs_cpus), "sl:arch": manifest.arch, "sl:os": "Linux",
        "sl:osversion": "-", "sl:comments": ", ".join(manifest.made_from)[:500] or "-",
        MANIFEST: to_document(listed)}
    if group:
        body["ad:group"] = group
    if test is not None:
        body[TEST] = dict(test)
    return body


def image_identifier(listing: str, name: str) -> str:
    """dc:identifier of an image in a list: the same whenever it is asked for."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{listing}/{name}"))


def main_file(manifest: Manifest) -> ImageFile:
    """The one file that HEPiX' keys speak of: the disk; of an image without one, its first file."""
    return manifest.file("disk") or manifest.files[0]


def digests_of(path: Path, bar: Optional[Bar] = None) -> tuple[str, str, int]:
    """SHA-512 and SHA-256 (hexadecimal digits) of a file, and its bytes. Raises OSError."""
    wide, narrow, size = hashlib.sha512(), hashlib.sha256(), 0
    for chunk in files.chunks(path, bar):
        wide.update(chunk)
        narrow.update(chunk)
        size += len(chunk)
    return wide.hexdigest(), narrow.hexdigest(), size


def next_version(version: str) -> str:
    """The version after this one: its last number goes up."""
    if not re.search("[0-9]", version):
        return f"{version}.1" if version else "1"
    return re.sub(r"[0-9]+(?=[^0-9]*\Z)", lambda found: str(int(found.group()) + 1), version)
