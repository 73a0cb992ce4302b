"""A disk somebody else made becomes an image that firmware boots. Its bytes and format stay, but a raw disk, which
would travel with all its empty space, is packed first."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Optional

from vmjob.core.errors import ImageError, ImageRefused
from vmjob.core.files import hash_file
from vmjob.core.model import Boot, ImageFile, Manifest
from vmjob.core.progress import Reporter
from vmjob.core.units import MIB
from vmjob.image import formats
from vmjob.image.layers import qcow2
from vmjob.image.store.images import Store


def import_disk(file: Path, name: str, store: Store, firmware: Optional[str] = None, user: Optional[str] = None, *,
                needs_memory: int = 512 * MIB, description: str = "", reporter: Optional[Reporter] = None) -> Manifest:
    """Check a disk, take it into ``store`` as ``name`` (copied, as a reflink where possible; a raw disk
    as a compressed qcow2), and describe it.

    ``firmware`` bios or uefi overrides the guess; ``user`` is whom the program runs as in the guest. Raises
    ImageRefused where the disk is unsafe or nothing on it boots, ImageCorrupt, ImageMissing, ScratchFull,
    CommandMissing.
    """
    from vmjob.image import manifest as manifests

    reporter = reporter or Reporter()
    info = formats.inspect_disk(file)
    firmware = firmware or info.firmware
    if not firmware:
        raise ImageRefused(f"{file}: no boot loader to be seen on this disk",
                           "if firmware can boot it, say which: --firmware bios or --firmware uefi")
    with ExitStack() as stack:
        source = file.name
        if info.format == "raw":
            file, info = _packed(file, store.root, stack), replace(info, format="qcow2")
        with reporter.bar(f"read {source}", file.stat().st_size) as bar:
            sha256, size = hash_file(file, bar)
        disk = ImageFile("disk", f"disk.{info.format}", info.format, size, sha256, info.virtual_size)
        made = Manifest(name, (disk,), (Boot.DISK,), firmware=firmware, user=user or Manifest.user,
                        needs_memory=needs_memory, description=description, made_from=(source,))
        try:
            made = manifests.from_document(manifests.to_document(made), f"image {name}")
        except ImageError as wrong:
            raise ImageError(f"{wrong.message}", wrong.hint or "choose another name") from wrong
        store.add(made, file.parent, reporter, sources={"disk": file})
        return made


def _packed(raw: Path, store: Path, stack: ExitStack) -> Path:
    """The disk as a compressed qcow2, until ``stack`` ends; beside the blobs, where room for it is needed anyway."""
    store.mkdir(parents=True, exist_ok=True)
    spare = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store, prefix=".import-")))
    qcow2.pack(raw, spare / "disk.qcow2")
    return spare / "disk.qcow2"
