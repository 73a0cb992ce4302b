"""manifest.yaml: the small description that travels with an image. Read from strangers, so checked.

``load``/``dump`` are for files, ``from_document``/``to_document`` for a manifest inside another document.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vmjob.core import codec, schema
from vmjob.core.errors import ImageCorrupt, ImageError, VmjobError
from vmjob.core.model import Boot, ImageFile, Manifest

FILE_NAME = "manifest.yaml"
_HEADER = """\
# An image of vmjob. `vmjob image inspect` shows it, `vmjob run --image FOLDER -- COMMAND` boots it.
# The digest is over all that decides what boots; a name or a description may change without it.
"""
DISK_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx")
_FORMATS = {"disk": DISK_FORMATS, "kernel": ("elf", "bzimage"), "initrd": ("cpio",), "layer": ("delta",)}
_FIRST, _LAST = ("schema", "name", "description", "digest", "arch"), ("files", "made_from", "sources")  # for readers
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
    manifest = codec.read(Manifest, body, where, units=True, error=error)
    for n, file in enumerate(manifest.files):
        _check_format(file, f"{where}: files.{n}", error)
    _check(manifest, where, error)
    stated = body.get("digest", manifest.digest)
    if stated != manifest.digest:
        raise ImageCorrupt(f"{where}: digest: {stated} is stated, but the content has {manifest.digest}",
                           "the manifest was changed after it was made: fetch it again, or remove the line")
    return manifest


def _check_format(file: ImageFile, where: str, error: type[VmjobError]) -> None:
    fitting = _FORMATS[file.role.rstrip("0123456789")]
    if file.format not in fitting:
        raise error(f"{where}.format: {file.format!r} is no format of a {file.role}", f"one of {', '.join(fitting)}")


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
    body = {"schema": 1, "digest": manifest.digest, **codec.write(manifest, units=True)}
    between = [key for key in body if key not in (*_FIRST, *_LAST)]
    return {key: body[key] for key in (*_FIRST, *between, *_LAST)}
