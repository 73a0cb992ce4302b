"""The disk of an image as QEMU stacks it: the disk itself, and on it the layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmjob.errors import ImageRefused
from vmjob.image.blobs import Blobs
from vmjob.model import Manifest


def chain(manifest: Manifest, paths: Mapping[str, Path], blobs: Blobs) -> tuple[Path, ...]:
    """The files of the disk, lowest first; ``paths``: the verified files by role. Raises ImageRefused, ScratchFull."""
    if manifest.layers:
        raise ImageRefused(f"{manifest.name}: layers are not known yet", "")
    return (paths["disk"],) if "disk" in paths else ()
