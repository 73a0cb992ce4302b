"""manifest.yaml: the small description that travels with an image. Read from strangers, so checked.

``load``/``dump`` are for files, ``from_document``/``to_document`` for a manifest inside another document.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from vmjob.core import schema, units
from vmjob.core.errors import ImageCorrupt, ImageError, JobError, VmjobError
from vmjob.core.model import Boot, ImageFile, Manifest

FILE_NAME = "manifest.yaml"
_HEADER = """\
# An image of vmjob. `vmjob image inspect` shows it, `vmjob run --image FOLDER -- COMMAND` boots it.
# The digest is over all that decides what boots; a name or a description may change without it.
"""
DISK_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
_FORMATS = {"disk": DISK_FORMATS, "kernel": ("elf", "bzimage"), "initrd": ("cpio",), "layer": ("delta",)}
_USED = {Boot.JOB: ("kernel", "initrd", "disk", "layer"), Boot.SYSTEM: ("kernel", "initrd", "disk", "layer"),
         Boot.DISK: ("disk", "layer")}
_NEEDED = {Boot.JOB: ("kernel", "initrd"), Boot.SYSTEM: ("kernel", "initrd", "disk"), Boot.DISK: ("disk",)}


def load(path: Path) -> Manifest:
    """The manifest in ``path`` (a YAML file, or a folder that holds manifest.yaml).

    Raises ImageError naming the file and the key, also where a stated digest is not the digest of the content.
    """
    file = path / FILE_NAME if path.is_dir() else path
    return from_document(schema.load_yaml(file, "manifest", ImageError), str(file), checked=True)


def dump(manifest: Manifest) -> str:
    """The text of manifest.yaml."""
    import yaml

    body: str = yaml.safe_dump(to_document(manifest), sort_keys=False, width=120, allow_unicode=True)
    return _HEADER + body


def from_document(document: Any, where: str, error: type[VmjobError] = ImageError, *,
                       checked: bool = False) -> Manifest:
    """The manifest in a mapping read from ``where`` (a file, or file and key), distrusted; ``checked``: it already
    fits the schema. Raises ``error`` naming ``where`` and the key, also where a stated digest is not the content's."""
    body = document if checked else schema.check(document, "manifest", where, error)
    files = tuple(_file(entry, f"{where}: files.{n}", error) for n, entry in enumerate(body["files"]))
    needs = body.get("needs", {})
    try:
        memory = units.parse_size(needs.get("memory", Manifest.needs_memory), f"{where}: needs.memory")
    except JobError as wrong:
        raise error(wrong.message, wrong.hint) from wrong
    manifest = Manifest(
        name=body["name"], files=files, boot=tuple(Boot(b) for b in body["boot"]),
        arch=body.get("arch", "x86_64"), cmdline=body.get("cmdline", ""), firmware=body.get("firmware", "bios"),
        user=body.get("user", Manifest.user), needs_memory=memory, needs_cpus=needs.get("cpus", 1),
        description=body.get("description", ""), made_from=tuple(body.get("made_from", ())),
        sources=tuple(body.get("sources", ())))
    _check(manifest, where, error)
    stated = body.get("digest", manifest.digest)
    if stated != manifest.digest:
        raise ImageCorrupt(f"{where}: digest: {stated} is stated, but the content has {manifest.digest}",
                           "the manifest was changed after it was made: fetch it again, or remove the line")
    return manifest


def _file(entry: dict[str, Any], where: str, error: type[VmjobError]) -> ImageFile:
    role, form = entry["role"], entry["format"]
    fitting = _FORMATS[role.rstrip("0123456789")]
    if form not in fitting:
        raise error(f"{where}.format: {form!r} is no format of a {role}", f"one of {', '.join(fitting)}")
    return ImageFile(role, entry["path"], form, entry["size"], entry["sha256"], entry.get("virtual_size", 0))


def _check(manifest: Manifest, where: str, error: type[VmjobError]) -> None:
    roles = [f.role for f in manifest.files]
    paths = [f.path for f in manifest.files]
    if len(set(roles)) < len(roles) or len(set(paths)) < len(paths):
        raise error(f"{where}: files: two entries have the same role or path", "one file of each role")
    layers = [f.role for f in manifest.layers]
    if layers != [f"layer{n + 1}" for n in range(len(layers))] or (layers and "disk" not in roles):
        raise error(f"{where}: files: layers are on a disk, and numbered from layer1 on", "name all of the chain")
    for n, source in enumerate(manifest.sources):
        if len(manifest.files) > 1 and not source.endswith("/") and not re.search(r"\{(path|sha256)\}", source):
            raise error(f"{where}: sources.{n}: {source} cannot be the address of {len(manifest.files)} files",
                        "end it with / where it is their folder, or put {path} or {sha256} in it")
    wanted = {role for boot in manifest.boot for role in _USED[boot]}
    for role in roles:
        if role.rstrip("0123456789") not in wanted:
            methods = ", ".join(boot.value for boot in manifest.boot)
            raise error(f"{where}: files: no boot method of {methods} uses the {role}",
                        "remove it from files, or add the boot method that needs it")
    for boot in manifest.boot:
        lacking = [role for role in _NEEDED[boot] if role not in roles]
        if lacking:
            raise error(f"{where}: boot: '{boot.value}' needs a file with the role {lacking[0]}",
                             f"add it to files, or take '{boot.value}' out of boot")


def to_document(manifest: Manifest) -> dict[str, Any]:
    """What ``from_document`` reads back as an equal manifest; plain types only."""
    files = []
    for file in manifest.files:
        entry = dataclasses.asdict(file)
        if not file.virtual_size:
            del entry["virtual_size"]
        files.append(entry)
    return {
        "schema": 1, "name": manifest.name, "description": manifest.description, "digest": manifest.digest,
        "arch": manifest.arch, "boot": [b.value for b in manifest.boot], "cmdline": manifest.cmdline,
        "firmware": manifest.firmware, "user": manifest.user,
        "needs": {"memory": _size_text(manifest.needs_memory), "cpus": manifest.needs_cpus},
        "files": files, "made_from": list(manifest.made_from), "sources": list(manifest.sources),
    }


def _size_text(size: int) -> str:
    for unit, factor in (("GiB", units.GIB), ("MiB", units.MIB), ("KiB", units.KIB)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
